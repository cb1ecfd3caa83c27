"""Runs inside vLLM, as an ASGI middleware: takes the worker's key from `X-Api-Key` too.

A request that comes through the API server's proxy has no Authorization header any more: the API server keeps it. vLLM
itself, which only knows that header, then checks the key as ever. Only the standard library; any Python.
"""

from __future__ import annotations

from typing import Any


class KeyHeader:
    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = list(scope["headers"])
            names = {name.lower() for name, _ in headers}
            if b"authorization" not in names:
                headers += [
                    (b"authorization", b"Bearer " + key) for name, key in headers if name.lower() == b"x-api-key"
                ]
                scope = {**scope, "headers": headers}
        await self.app(scope, receive, send)
