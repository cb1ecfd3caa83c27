"""Opens event streams: bounded per key, and ended soon after the key or the membership that allowed them."""

from collections.abc import AsyncIterator

from fastapi import Request
from starlette.types import Receive, Scope, Send

from services.app.identity.authenticate import Authenticator, still_valid
from services.app.identity.caller import Caller
from shared.http.sse import Batch, EventStream, StreamSlots


class _HeldStream(EventStream):
    """A stream that takes one of its key's slots while it is open."""

    slots: StreamSlots
    key: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.slots.hold(self.key):
            await super().__call__(scope, receive, send)


def open_stream(request: Request, caller: Caller, batches: AsyncIterator[Batch]) -> EventStream:
    authenticator: Authenticator = request.app.state.authenticator

    async def allowed() -> bool:
        return await still_valid(authenticator, request, caller)

    stream = _HeldStream(batches, allowed=allowed)
    stream.slots, stream.key = request.app.state.stream_slots, str(caller.key_id)
    return stream
