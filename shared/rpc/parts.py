"""Streams between services, in parts: sidecars hand on no answer before its end, and do not tell one that broke off.

Whoever serves a stream holds it (`Held`) and gives what there is each time that it is asked; each part is lines of JSON,
`{"item": …}`, and ends with `{"more": id}`, `{"end": true}` or `{"fault": …}`. Another replica does not know the stream: it
answers 410, and is asked until the right one is met.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import structlog
from pydantic_core import to_json

from shared.rpc.faults import packed

STREAM_HEADER = "stepway-stream"  # of a call: the stream of which the next part is wanted
END_HEADER = "stepway-stream-end"  # with it: the stream is not wanted any more
ELSEWHERE = 410
HOLD = 5.0  # seconds that a call is held while there is nothing
SILENT = 30.0  # seconds after which a stream that nobody asks for ends
ITEMS, SIZE = 1000, 1024 * 1024  # of one part, about

log = structlog.get_logger(__name__)


class Held:
    """One stream that is being read. Its source is closed when it ends, or when nobody has asked for `SILENT` seconds."""

    def __init__(self, given: AsyncIterator[Any], dump: Callable[[Any], bytes], streams: "dict[str, Held]") -> None:
        self._dump = dump
        self._streams = streams
        self._lines: asyncio.Queue[bytes] = asyncio.Queue(ITEMS)
        self._id = uuid4().hex
        self._over = False
        self._reading = asyncio.create_task(self._read(given))
        self._expiry: asyncio.TimerHandle | None = None
        streams[self._id] = self

    async def part(self) -> bytes:
        """What there is, once there is something, or nothing for `HOLD` seconds."""
        if self._expiry is not None:
            self._expiry.cancel()
        lines, size = [], 0
        try:
            async with asyncio.timeout(HOLD):
                lines.append(await self._lines.get())
        except TimeoutError:
            pass
        while not self._lines.empty() and len(lines) < ITEMS and size < SIZE:
            lines.append(self._lines.get_nowait())
            size += len(lines[-1])
        if self._over and self._lines.empty():
            self.close()
        else:
            lines.append(to_json({"more": self._id}))
            self._expiry = asyncio.get_running_loop().call_later(SILENT, self.close)
        return b"\n".join(lines)

    def close(self) -> None:
        self._streams.pop(self._id, None)
        self._reading.cancel()
        if self._expiry is not None:
            self._expiry.cancel()

    async def _read(self, given: AsyncIterator[Any]) -> None:
        last: Any = {"end": True}
        try:
            async for one in given:
                await self._lines.put(b'{"item":' + self._dump(one) + b"}")
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            fault = packed(error)
            if fault is None:
                log.error("stream_fault", exc_info=error)
            last = {"fault": fault}
        await self._lines.put(to_json(last))
        self._over = True
