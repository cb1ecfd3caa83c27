"""HEAD is answered as GET, without the body: over a real server, for streams too."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.responses import Response

from shared.errors import Problem
from shared.http import guards, problems
from shared.http.sse import Batch, EventStream
from tests.shared.http.conftest import Serve, client_of


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()
    problems.install(app)
    guards.install(app, allowed_hosts=["127.0.0.1", "test"])
    app.state.closed = asyncio.Event()

    @app.get("/things")
    async def _things(request: Request) -> dict[str, str]:
        return {"method": request.method}

    @app.get("/gone")
    async def _gone() -> None:
        raise Problem("not_found", "There is no such thing.")

    @app.post("/things")
    async def _make() -> None:
        """Never asked."""

    @app.post("/orders")
    async def _order() -> None:
        """Never asked."""

    async def silence() -> AsyncIterator[Batch]:
        try:
            await asyncio.Event().wait()
            yield b""
        finally:
            app.state.closed.set()

    @app.get("/events")
    async def _events() -> Response:
        return EventStream(silence())

    return app


async def test_it_has_the_headers_of_get_and_no_body(app: FastAPI, serve: Serve) -> None:
    async with serve(app) as url, httpx.AsyncClient() as client:
        got, head = await client.get(f"{url}/things"), await client.head(f"{url}/things")
        gone = await client.head(f"{url}/gone")
        again = await client.get(f"{url}/things")  # the connection is whole
    assert (got.json(), again.json()) == ({"method": "GET"}, {"method": "GET"})
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "content-length", "x-content-type-options"):
        assert head.headers[name] == got.headers[name]
    assert len(head.headers["x-request-id"]) >= 8
    assert (gone.status_code, gone.content, gone.headers["content-type"]) == (404, b"", "application/problem+json")


async def test_a_path_without_get_is_405(app: FastAPI) -> None:
    async with client_of(app) as client:
        answer = await client.head("/orders")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


async def test_a_stream_ends_with_its_headers(app: FastAPI, serve: Serve) -> None:
    async with asyncio.timeout(60), serve(app) as url, httpx.AsyncClient() as client:
        head = await client.head(f"{url}/events")
        await app.state.closed.wait()
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == "text/event-stream; charset=utf-8"
