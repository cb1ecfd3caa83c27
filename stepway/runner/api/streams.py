"""The events of a run as they come, as Server-Sent Events or as lines of JSON.

A reader costs one batch of events: what it has not taken stays with its connection, whose fullness makes us wait. A reader
that takes nothing for long, or has gone, is let go. The normal end of a stream says that the run is over; a server that stops
breaks streams off instead, in the middle of the chunked body, so that clients come again with the last number they have.
"""

import asyncio
import logging
import re
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from stepway.runner.api.envelopes import is_terminal, without_qualified_name
from stepway.runner.api.errors import Refused
from stepway.runner.api.request import Answer, Request
from stepway.runner.config import Config
from stepway.runner.store import Event, Handler, Store, StoreUnavailable

log = logging.getLogger(__name__)

CONNECTION = "stepway.connection"  # the extension of ASGI by which our own server lends a request's transport

_HEADERS = ((b"cache-control", b"no-store"), (b"x-accel-buffering", b"no"))
_SSE = ((b"content-type", b"text/event-stream; charset=utf-8"), *_HEADERS)
_LINES = ((b"content-type", b"application/x-ndjson"), *_HEADERS)
_HEARTBEAT = b": heartbeat\n\n"
_BATCH = 256
_PIECE = 64 * 1024
_NUMBER = re.compile(r"[+-]?\d{1,18}")
_LINE_BREAKS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}
_RESET = struct.pack("ii", 1, 0)
_CLOSING = 1.0  # seconds that a connection may take to send what it holds and close


@dataclass(frozen=True, slots=True)
class Wish:
    """What a reader asked for. `after`: the number after which to begin; None is now."""

    sse: bool
    internal: bool
    qualified_name: bool
    after: int | None


def wish(request: Request) -> Wish:
    """Raises Refused (400)."""
    sse = request.flag("sse", True)
    asked = request.last("after_sequence", "now").strip()
    if asked.lower() == "now":
        after = None
    elif _NUMBER.fullmatch(asked):
        after = max(int(asked), -1)
    else:
        raise Refused(400, f"Invalid after_sequence: {asked[:100]!r}")
    seen = request.headers.get(b"last-event-id", b"").decode("latin-1").strip()
    if sse and _NUMBER.fullmatch(seen):
        after = max(int(seen), -1)
    return Wish(sse, request.flag("include_internal", False), request.flag("include_qualified_name", True), after)


class Streams:
    """The open streams of one server."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._open: set[_Reader] = set()
        self._closing = False

    async def serve(self, request: Request, store: Store, handler: Handler, asked: Wish) -> None:
        """Answer with the stream of a handler's present run. Raises Refused (503)."""
        if self._closing:
            raise Refused(503, "This server is stopping")
        after = asked.after if asked.after is not None else await store.last_event(handler.run_id)
        if handler.over and not await store.events(handler.run_id, after, 1, internal=True):
            await request.answer(Answer(b"", 204))
            return
        if request.method == "HEAD":
            await request.answer(Answer(b"", 200, _SSE if asked.sse else _LINES))
            return
        reader = _Reader(request, store, handler, asked, after, self._config)
        self._open.add(reader)
        try:
            await reader.run()
        finally:
            self._open.discard(reader)

    def __len__(self) -> int:
        return len(self._open)

    def break_off(self) -> None:
        """End all streams as if the connection had failed; none is served any more."""
        self._closing = True
        for reader in list(self._open):
            reader.break_off()


class _Reader:
    def __init__(
        self, request: Request, store: Store, handler: Handler, asked: Wish, after: int, config: Config
    ) -> None:
        self._request = request
        self._store = store
        self._handler = handler
        self._asked = asked
        self._after = after
        self._config = config
        self._sent_at = asyncio.get_running_loop().time()
        self._task: asyncio.Task[None] | None = None
        self._broken = False
        self._gone = asyncio.Event()

    async def run(self) -> None:
        self._task = asyncio.current_task()
        watch = asyncio.ensure_future(self._watch())
        try:
            headers = [*(_SSE if self._asked.sse else _LINES), *self._request.added]
            await self._request.send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._tell()
            await self._send(b"", more=False)
        except TimeoutError:
            log.info("A reader of run %s took nothing for long, and was let go", self._handler.run_id)
            await self._leave(reset=True)
        except StoreUnavailable:
            await self._leave()
        except asyncio.CancelledError:
            if not self._broken and not self._gone.is_set():
                raise
            if self._task is not None:
                self._task.uncancel()
            await self._leave()
        finally:
            watch.cancel()

    def break_off(self) -> None:
        if self._task is not None and not self._broken:
            self._broken = True
            self._task.cancel()

    async def _watch(self) -> None:
        """Stop when the reader goes away."""
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._gone.set()
        if self._task is not None and not self._broken:
            self._task.cancel()

    async def _leave(self, *, reset: bool = False) -> None:
        """Close the connection without the end of the body, and wait until it is closed, lest it be taken for a fault.

        `reset`: what it still holds is for nobody. A server that is not ours closes by itself where an answer is unfinished.
        """
        self._broken = True
        transport = self._request.scope.get("extensions", {}).get(CONNECTION, {}).get("transport")
        if transport is None or self._gone.is_set():
            return
        if not reset:
            transport.close()
            try:
                async with asyncio.timeout(_CLOSING):
                    await self._gone.wait()
                    return
            except TimeoutError:  # it does not read, so what it has been sent never goes
                pass
        if (connection := transport.get_extra_info("socket")) is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        transport.abort()
        await self._gone.wait()

    async def _tell(self) -> None:
        """Send events until the run is over and all of them are sent."""
        over = False
        while True:
            events = await self._store.events(
                self._handler.run_id, self._after, _BATCH, internal=True, size=self._config.stream_buffer
            )
            if events:
                await self._send_events(events)
            elif over:  # was known before this reading, and nothing comes after the end
                return
            if not over and (not events or is_terminal(events[-1].data)):
                over = await self._is_over()
            if not over:
                await self._wait()

    async def _is_over(self) -> bool:
        """Also when the handler has been purged, or runs anew."""
        known = await self._store.get(self._handler.handler_id)
        return known is None or known.over or known.run_id != self._handler.run_id

    async def _wait(self) -> None:
        left = self._sent_at + self._config.heartbeat - asyncio.get_running_loop().time()
        if left <= 0:
            await self._send(_HEARTBEAT if self._asked.sse else b"")
            left = self._config.heartbeat
        await self._store.changed(self._handler.run_id, self._after, left)

    async def _send_events(self, events: Sequence[Event]) -> None:
        self._after = events[-1].seq
        shown = [event for event in events if self._asked.internal or not event.internal]
        data = b"".join(self._written(event) for event in shown)
        for start in range(0, len(data), _PIECE):
            await self._send(data[start : start + _PIECE])

    def _written(self, event: Event) -> bytes:
        data = event.data if self._asked.qualified_name else without_qualified_name(event.data)
        if not data.isascii():  # the characters at which some readers break lines, all inside of strings
            data = data.translate(_LINE_BREAKS)
        return (f"id: {event.seq}\ndata: {data}\n\n" if self._asked.sse else f"{data}\n").encode()

    async def _send(self, data: bytes, *, more: bool = True) -> None:
        """Raises TimeoutError when the reader takes nothing."""
        async with asyncio.timeout(self._config.stream_stall):
            await self._request.send({"type": "http.response.body", "body": data, "more_body": more})
        self._sent_at = asyncio.get_running_loop().time()
