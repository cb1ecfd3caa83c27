"""Server-sent events: a streaming answer with heartbeats, and what a client sends to take a stream up again.

Many readers of one event share one encoding: `encode` once, then give the bytes to each stream.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from shared.errors import Problem

Event = tuple[int | str, str, str]
"""Its id, its name, its data (JSON text)."""
Batch = bytes | Iterable[Event]

HEARTBEAT = b":\n\n"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
MAX_ID_DIGITS = 18


def encode(event_id: int | str, name: str, data: str) -> bytes:
    """One event as bytes. `data` is one JSON text; the id and the name hold no line breaks."""
    lines = (
        data.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\ndata: ")
        if "\n" in data or "\r" in data
        else data
    )
    return f"id: {event_id}\nevent: {name}\ndata: {lines}\n\n".encode()


def last_event_id(request: Request) -> int | None:
    """The sequence number after which to go on; None replays all. Problem `invalid_request` (400) for anything else."""
    text = request.headers.get("last-event-id")
    if text is None or text == "":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_ID_DIGITS):
        raise Problem("invalid_request", "Last-Event-ID must be the id of an event.", param="Last-Event-ID")
    return int(text)


class EventStream(Response):
    """Sends batches as they come, a comment when nothing came for `heartbeat` seconds, and ends with the iterator.

    `allowed` is asked every `recheck` seconds; the stream ends when it says no (a revoked key, a lost membership). The
    iterator is closed when the client goes away.
    """

    def __init__(
        self,
        batches: AsyncIterator[Batch],
        *,
        heartbeat: float = 15.0,
        allowed: Callable[[], Awaitable[bool]] | None = None,
        recheck: float = 30.0,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(None, headers={**HEADERS, **(headers or {})}, media_type="text/event-stream")
        del self.headers["content-length"]
        self._batches = batches
        self._heartbeat = heartbeat
        self._allowed = allowed
        self._recheck = recheck

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        # The first bytes at once: proxies and EventSource then know that the stream is open.
        await send({"type": "http.response.body", "body": HEARTBEAT, "more_body": True})
        writer = asyncio.create_task(self._write(send))
        watcher = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({writer, watcher}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (watcher, writer):
                task.cancel()
            results = await asyncio.gather(writer, watcher, return_exceptions=True)
        failure = results[0]
        if isinstance(failure, Exception) and not isinstance(failure, OSError):
            raise failure
        if not isinstance(failure, BaseException):
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        check_at = clock() + self._recheck
        async for chunk in _with_heartbeat(self._batches, self._heartbeat):
            if self._allowed is not None and clock() >= check_at:
                if not await self._allowed():
                    return
                check_at = clock() + self._recheck
            if chunk:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def _with_heartbeat(batches: AsyncIterator[Batch], interval: float) -> AsyncIterator[bytes]:
    upcoming: asyncio.Future[Any] | None = None
    try:
        while True:
            if upcoming is None:
                upcoming = asyncio.ensure_future(anext(batches, None))
            done, _ = await asyncio.wait({upcoming}, timeout=interval)
            if not done:
                yield HEARTBEAT
                continue
            batch, upcoming = upcoming.result(), None
            if batch is None:
                return
            yield batch if isinstance(batch, bytes) else b"".join(encode(*event) for event in batch)
    finally:
        if upcoming is not None:
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)
        close = getattr(batches, "aclose", None)
        if close is not None:
            await close()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class StreamSlots:
    """Bounds the open streams of one key, in this process."""

    def __init__(self, per_key: int = 20) -> None:
        self._per_key = per_key
        self._open: Counter[str] = Counter()

    @contextmanager
    def hold(self, key: str) -> Iterator[None]:
        """A slot for the length of the block. Problem `rate_limited` (429) when the key has no more."""
        if self._open[key] >= self._per_key:
            raise Problem("rate_limited", f"At most {self._per_key} streams may be open at once.")
        self._open[key] += 1
        try:
            yield
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]
