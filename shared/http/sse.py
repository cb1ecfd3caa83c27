"""Server-sent events: a streaming answer with heartbeats, and what a client sends to take a stream up again.

Many readers of one event share one encoding: `encode` once, then give the bytes to each stream.
"""

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from shared.errors import Problem

Event = tuple[int | str, str, str]
"""Its id, its name, its data (JSON text)."""
Batch = bytes | Iterable[Event]

HEARTBEAT = b":\n\n"
LAST_WORD = 0.5  # seconds, when the service stops, for a client that reads too slowly to be told of the end
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
MAX_ID_DIGITS = 18
LINE_BREAK = re.compile(r"\r\n|\r|\n")


def encode(event_id: int | str, name: str, data: str) -> bytes:
    """One event as bytes. `data` is one JSON text; the id and the name hold no line breaks."""
    lines = LINE_BREAK.sub("\ndata: ", data)
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

    `allowed` is asked every `recheck` seconds; the stream ends when it says no (a revoked key, a lost membership). It
    ends too when `closing` is set. The iterator is closed when the client goes away.
    """

    media_type = "text/event-stream"
    pulse = HEARTBEAT
    closing: asyncio.Event | None = None

    def __init__(
        self,
        batches: AsyncIterator[Batch],
        *,
        heartbeat: float = 15.0,
        allowed: Callable[[], Awaitable[bool]] | None = None,
        recheck: float = 30.0,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(None, headers={**HEADERS, **(headers or {})})
        del self.headers["content-length"]
        self._batches = batches
        self._heartbeat = heartbeat
        self._allowed = allowed
        self._recheck = recheck
        self._sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        # The first bytes at once: proxies and EventSource then know that the stream is open.
        await send({"type": "http.response.body", "body": self.pulse, "more_body": True})
        writer = asyncio.create_task(self._write(send))
        others = [asyncio.create_task(_gone(receive)), asyncio.create_task(self._beat(send))]
        if self._allowed is not None:
            others.append(asyncio.create_task(_until_refused(self._allowed, self._recheck)))
        if self.closing is not None:
            others.append(asyncio.create_task(_until(self.closing)))
        try:
            await asyncio.wait({writer, *others}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone = others[0].done()
            for task in (writer, *others):
                task.cancel()
            results = await asyncio.gather(writer, *others, return_exceptions=True)
        if gone:
            return
        for failure in results:
            # An OSError is how some servers tell that the client has gone.
            if isinstance(failure, Exception) and not isinstance(failure, OSError):
                raise failure
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD if self._is_closing() else None):
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _is_closing(self) -> bool:
        return self.closing is not None and self.closing.is_set()

    async def _write(self, send: Send) -> None:
        try:
            async for batch in self._batches:
                chunk = batch if isinstance(batch, bytes) else b"".join(encode(*event) for event in batch)
                if chunk:
                    self._sent_at = asyncio.get_running_loop().time()
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        finally:
            close = getattr(self._batches, "aclose", None)
            if close is not None:
                await close()

    async def _beat(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        self._sent_at = loop.time()
        while True:
            await asyncio.sleep(max(0.0, self._sent_at + self._heartbeat - loop.time()))
            if loop.time() >= self._sent_at + self._heartbeat:
                self._sent_at = loop.time()
                await send({"type": "http.response.body", "body": self.pulse, "more_body": True})


class TextStream(EventStream):
    """The same for lines of plain text, which know no comments: nothing is sent while nothing comes."""

    media_type = "text/plain"
    pulse = b""


async def _until_refused(allowed: Callable[[], Awaitable[bool]], interval: float) -> None:
    while True:
        await asyncio.sleep(interval)
        if not await allowed():
            return


async def _until(event: asyncio.Event) -> None:
    await event.wait()


async def first_of(*events: asyncio.Event, timeout: float) -> None:
    """Until one of the events is set, or so many seconds have passed."""
    waits = [asyncio.create_task(_until(event)) for event in events]
    try:
        await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class StreamSlots:
    """Bounds the open streams of one key, in this process, and tells all of them when it stops."""

    def __init__(self, per_key: int = 20) -> None:
        self._per_key = per_key
        self._open: Counter[str] = Counter()
        self._closing = asyncio.Event()

    @property
    def open(self) -> int:
        """How many streams, followed logs and waits there are now."""
        return self._open.total()

    def close(self) -> None:
        """Have every stream end, those that are still to be opened at once."""
        self._closing.set()

    @contextmanager
    def hold(self, key: str) -> Iterator[asyncio.Event]:
        """A slot for the length of the block, with the event of `close`. Problem `too_many_streams` (429) for one too many."""
        if self._open[key] >= self._per_key:
            raise Problem("too_many_streams", f"At most {self._per_key} streams may be open at once.")
        self._open[key] += 1
        try:
            yield self._closing
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]
