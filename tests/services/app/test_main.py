"""An app as a whole: what is left of one that is not used any more."""

import gc
import weakref

import httpx
from fastapi import FastAPI

from services.app.context import AppContext
from services.app.main import create_app


async def _ready() -> list[str]:
    return []


async def _used(context: AppContext) -> "weakref.ref[FastAPI]":
    """An app that has answered, of which nobody has hold any more."""
    app = create_app(context, _ready)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        for path in ("/healthz", "/readyz", "/openapi.json", "/docs/errors"):
            assert (await client.get(path)).status_code == 200
    return weakref.ref(app)


async def test_nothing_keeps_an_app_that_is_not_used_any_more(app_context: AppContext) -> None:
    app = await _used(app_context)
    gc.collect()
    assert app() is None
