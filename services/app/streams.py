"""Opens streams: bounded per key, and ended soon after the key or the membership that allowed them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager

from fastapi import Request
from starlette.types import Receive, Scope, Send

from services.app.identity.authenticate import Authenticator, still_valid
from services.app.identity.caller import Caller
from shared.errors import Problem
from shared.http.sse import Batch, EventStream, StreamSlots, TextStream


class _HeldEvents(EventStream):
    """A stream that takes one of its key's slots while it is open, and ends when the service stops."""

    slot: AbstractContextManager[asyncio.Event]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.slot as self.closing:
            await super().__call__(scope, receive, send)


class _HeldText(_HeldEvents, TextStream):
    pass


def open_stream(request: Request, caller: Caller, batches: AsyncIterator[Batch]) -> EventStream:
    """Server-sent events. Problem `rate_limited` when the key has as many streams as it may."""
    stream = _HeldEvents(batches, allowed=lambda: _still_valid(request, caller))
    stream.slot = hold_slot(request, caller)
    return stream


def open_text(request: Request, caller: Caller, lines: AsyncIterator[str]) -> TextStream:
    """Plain text, line by line, within the same bounds."""
    stream = _HeldText(_encoded(lines), allowed=lambda: _still_valid(request, caller))
    stream.slot = hold_slot(request, caller)
    return stream


def hold_slot(request: Request, caller: Caller) -> AbstractContextManager[asyncio.Event]:
    """One of the key's slots for as long as a request waits. The event is set when the service stops: then answer."""
    slots: StreamSlots = request.app.state.stream_slots
    return slots.hold(str(caller.key_id))


async def check_still_valid(request: Request, caller: Caller) -> None:
    """Problem `unauthenticated` when the key or a membership has been lost while the request waited."""
    if not await _still_valid(request, caller):
        raise Problem("unauthenticated", "The key, its role or a membership has changed meanwhile; ask again.")


async def _still_valid(request: Request, caller: Caller) -> bool:
    authenticator: Authenticator = request.app.state.authenticator
    return await still_valid(authenticator, request, caller)


async def _encoded(lines: AsyncIterator[str]) -> AsyncIterator[bytes]:
    try:
        async for line in lines:
            yield f"{line}\n".encode(errors="replace")
    finally:
        close = getattr(lines, "aclose", None)
        if close is not None:
            await close()
