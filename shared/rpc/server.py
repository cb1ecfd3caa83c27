"""Serves ports to the other services, on the internal listener only. Who calls is known before anything else happens.

A call comes through the sidecar of this service, with the token that only the sidecar and we know, and with the key of
the service that asks (`shared.rpc.identity`). The caller is in `caller` while its call is worked on, for the port's own
checks.
"""

import hmac
from collections.abc import AsyncIterator, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import structlog
from pydantic import SecretStr, ValidationError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from shared.rpc.faults import REFUSED, packed
from shared.rpc.identity import Identity
from shared.rpc.methods import MAX_BODY, Method, methods_of, port_name

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
        if not self._method.streams:
            given = answer.dump_json(await self._call(**arguments))
            return Response(given, media_type="application/json")
        lines = self._lines(self._call(**arguments))
        first = await anext(lines, None)  # a refusal comes before the answer has begun
        return StreamingResponse(_after(first, lines), media_type="application/x-ndjson")

    async def _lines(self, given: AsyncIterator[Any]) -> AsyncIterator[bytes]:
        async for one in given:
            yield self._method.answer.dump_json(one) + b"\n"


async def _after(first: bytes | None, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first is None:
        return
    yield first
    try:
        async for line in rest:
            yield line
    except BaseException as error:
        fault = packed(error)
        if fault is None:
            raise
        yield to_json({"fault": fault}) + b"\n"


async def _bounded(request: Request) -> bytes | None:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            return None
    return bytes(body)
