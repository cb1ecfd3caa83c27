"""Serves ports to the other services, on the internal listener only. Who calls is known before anything else happens.

A call comes through the sidecar of this service, with the token that only the sidecar and we know, and with the key of
the service that asks (`shared.rpc.identity`). The caller is in `caller` while its call is worked on, for the port's own
checks.
"""

import hmac
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import structlog
from pydantic import SecretStr, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shared.rpc.faults import REFUSED, packed
from shared.rpc.identity import Identity
from shared.rpc.methods import MAX_BODY, Method, methods_of, port_name
from shared.rpc.parts import ELSEWHERE, END_HEADER, STREAM_HEADER, Held

LINES = "application/x-ndjson"
TOKEN_HEADER = "dapr-api-token"  # noqa: S105 (a header's name)

log = structlog.get_logger(__name__)

caller: ContextVar[str | None] = ContextVar("caller", default=None)
"""The service that asks, while a call of another service is worked on; None for calls from within."""


@dataclass(frozen=True, slots=True)
class Served:
    """A port, what answers its calls, and the services that may call it."""

    port: type[Any]
    target: Any
    callers: frozenset[str]


def routes(ports: Iterable[Served], identity: Identity, token: SecretStr) -> list[Route]:
    """`POST /internal/<port>/<method>` for every method of every port. `token` is what our sidecar sends."""
    if not token.get_secret_value():
        raise ValueError("without a token for our sidecar, anybody could call")
    return [
        Route(
            f"/internal/{port_name(one.port)}/{method.name}", _Endpoint(one, method, identity, token), methods=["POST"]
        )
        for one in ports
        for method in methods_of(one.port).values()
    ]


class _Endpoint:
    def __init__(self, served: Served, method: Method, identity: Identity, token: SecretStr) -> None:
        self._served = served
        self._method = method
        self._identity = identity
        self._token = token.get_secret_value().encode()
        self._call = getattr(served.target, method.name)
        self._streams: dict[str, Held] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        response = await self._answer(Request(scope, receive))
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if not hmac.compare_digest(request.headers.get(TOKEN_HEADER, "").encode(), self._token):
            return JSONResponse({"error": "unauthenticated"}, 401)
        service = self._identity.caller_of(request.headers)
        if service not in self._served.callers:
            log.warning("call_refused", service=service, method=self._method.name)
            return JSONResponse({"error": "forbidden"}, 403)
        if STREAM_HEADER in request.headers:
            return await self._next_part(request)
        body = await _bounded(request)
        if body is None:
            return JSONResponse({"error": "too_large"}, 413)
        try:
            arguments = self._method.unpack(body)
        except ValidationError as error:
            return JSONResponse({"error": "invalid", "faults": error.error_count()}, 422)
        known = caller.set(service)
        try:
            return await self._called(arguments)
        except BaseException as error:
            fault = packed(error)
            if fault is None:
                raise
            return JSONResponse(fault, REFUSED)
        finally:
            caller.reset(known)

    async def _called(self, arguments: dict[str, Any]) -> Response:
        answer = self._method.answer
        if self._method.streams:
            held = Held(self._call(**arguments), answer.dump_json, self._streams)
            return Response(await held.part(), media_type=LINES)
        return Response(answer.dump_json(await self._call(**arguments)), media_type="application/json")

    async def _next_part(self, request: Request) -> Response:
        held = self._streams.get(request.headers[STREAM_HEADER])
        if held is None:
            return JSONResponse({"error": "elsewhere"}, ELSEWHERE)
        if END_HEADER in request.headers:
            held.close()
            return Response(b"", media_type=LINES)
        return Response(await held.part(), media_type=LINES)


async def _bounded(request: Request) -> bytes | None:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            return None
    return bytes(body)
