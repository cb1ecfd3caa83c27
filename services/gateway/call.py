"""Reads a client's request and makes of it what a worker is sent.

The body is parsed and written anew: what was checked here is what the worker reads, whatever its parser makes of
duplicate keys, NaN or broken UTF-8.
"""

import asyncio
import json
import re
from typing import Any
from uuid import UUID, uuid4

from starlette.types import Receive, Scope

from services.gateway.access import Credentials
from services.gateway.limits import Limits
from services.gateway.table import Route
from shared import log
from shared.errors import Problem
from shared.http import strict_json
from shared.telemetry import traces

_MAX_DEPTH = 64  # the parameters of tools are JSON Schemas, which nest deeper than the rest of the API
_CHARSET = re.compile(r"charset\s*=\s*\"?([^\s;\"]*)")
_TRACE_HEADERS = (b"traceparent", b"tracestate")
_ID_CHARACTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_PRINTABLE = frozenset(range(0x20, 0x7F))


class ClientGone(Exception):
    """The client closed the connection."""


class Headers:
    """The headers of a request. A header that decides who someone is may come once only."""

    __slots__ = ("_values",)

    def __init__(self, scope: Scope) -> None:
        self._values: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            self._values.setdefault(name.lower(), []).append(value)

    def one(self, name: bytes) -> str | None:
        values = self._values.get(name)
        if values is None:
            return None
        if len(values) > 1:
            raise Problem("invalid_request", f"The header {name.decode()} was sent more than once.")
        return values[0].decode("latin-1")

    def joined(self, name: bytes, separator: bytes) -> str | None:
        values = self._values.get(name)
        return None if values is None else separator.join(values).decode("latin-1")

    def plain(self, name: bytes, allowed: frozenset[int], longest: int) -> str | None:
        """The first value, if it is made of `allowed` characters only."""
        value = self._values.get(name, [b""])[0]
        return value.decode("ascii") if 0 < len(value) <= longest and allowed.issuperset(value) else None


def credentials(headers: Headers, method: str) -> Credentials:
    return Credentials(
        authorization=headers.one(b"authorization"),
        cookie=headers.joined(b"cookie", b"; "),
        origin=headers.one(b"origin"),
        host=headers.one(b"host"),
        method=method,
    )


def request_id(headers: Headers) -> tuple[str, bool]:
    """The request's id, and whether the gateway must tell it to the client: not when the edge has given it."""
    given = log.request_id()
    if given is not None:
        return given, False
    return headers.plain(b"x-request-id", _ID_CHARACTERS, 64) or uuid4().hex, True


def trace_headers(headers: Headers) -> dict[str, str]:
    """The client's trace, as far as this process has taken it: its span is the one that the worker's hang on."""
    found = ((name.decode(), headers.plain(name, _PRINTABLE, 512)) for name in _TRACE_HEADERS)
    given = {name: value for name, value in found if value is not None}
    own = traces.outgoing()
    if own and own["traceparent"].split("-")[1] not in given.get("traceparent", ""):
        return own  # a trace of ours: the client's state says nothing about it
    return {**given, **own}


def endpoint_id(text: str) -> UUID:
    """The id in the path; the nil UUID, which no endpoint has, for anything that is not one in its usual form."""
    try:
        found = UUID(text)
    except ValueError:
        return UUID(int=0)
    return found if str(found) == text.lower() else UUID(int=0)


async def read_object(headers: Headers, receive: Receive, limits: Limits) -> dict[str, Any]:
    """The request's JSON object. Raises Problem, or ClientGone."""
    content_type, _, options = (headers.one(b"content-type") or "").lower().partition(";")
    charset = _CHARSET.search(options)
    if content_type.strip() != "application/json" or (charset is not None and charset[1] not in ("utf-8", "us-ascii")):
        raise Problem("unsupported_media_type", "Send the body with Content-Type: application/json, in UTF-8.")
    if (headers.one(b"content-encoding") or "identity").lower() != "identity":
        raise Problem("unsupported_media_type", "Send the body without a Content-Encoding.")
    declared = headers.one(b"content-length")
    if declared is not None and declared.isdecimal() and int(declared[:20]) > limits.body_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.body_seconds):
            body = await _read(receive, limits)
    except TimeoutError:
        raise Problem("invalid_request", f"The body did not arrive within {limits.body_seconds:g} s.") from None
    return _parse(body)


async def _read(receive: Receive, limits: Limits) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > limits.body_bytes:
            raise _too_large(limits)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(limits: Limits) -> Problem:
    return Problem("body_too_large", f"The body may have {limits.body_bytes} bytes at most.")


def _parse(body: bytes) -> dict[str, Any]:
    found = strict_json.loads(body, _MAX_DEPTH)
    if not isinstance(found, dict):
        raise Problem("invalid_json", "The body is not a JSON object.")
    return found


def wants_stream(payload: dict[str, Any]) -> bool:
    stream = payload.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise Problem("validation_failed", "`stream` is true or false.", param="stream")
    return bool(stream)


def for_worker(payload: dict[str, Any], route: Route) -> bytes:
    """The body that a worker is sent: the client's, with the model's name as the worker knows it."""
    model = payload.get("model")
    if model is not None and not isinstance(model, str):
        raise Problem("validation_failed", "`model` is a text.", param="model")
    name = route.name_for_worker(model)
    if name is None:
        raise unknown_model(str(model))
    return json.dumps({**payload, "model": name}, ensure_ascii=False, separators=(",", ":")).encode()


def unknown_model(name: str) -> Problem:
    shown = name if len(name) <= 200 else name[:200] + "…"
    return Problem("model_not_found", f"The model `{shown}` does not exist here.", param="model")
