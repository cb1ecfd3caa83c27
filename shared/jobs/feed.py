"""The event sequences of jobs and topics, for many readers: each event is read and encoded once, however many follow it.

A feed keeps the newest events of one sequence while somebody reads it. Readers that are further behind read the
database by themselves until they have caught up.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import text

from shared.db.engine import Database
from shared.http.sse import encode
from shared.jobs.hub import Hub

KEPT = 256
PAGE = 200
LOOK_AGAIN = 10.0  # seconds: a lost notification costs this

_READ = {
    "job": text("""SELECT seq AS number, type, data FROM jobs.event
                    WHERE job_id = :id AND seq > :after ORDER BY seq LIMIT :page"""),
    "topic": text("""SELECT topic_seq AS number, type, data FROM jobs.event
                      WHERE topic = :id AND topic_seq > :after ORDER BY topic_seq LIMIT :page"""),
}
Kind = Literal["job", "topic"]


@dataclass(frozen=True, slots=True)
class FeedEvent:
    number: int
    type: str
    state: str | None
    encoded: bytes


@dataclass(slots=True)
class _Feed:
    readers: int = 0
    newest: int = -1  # number of the last event kept; -1 before the first look
    events: deque[FeedEvent] = field(default_factory=lambda: deque(maxlen=KEPT))
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)


class Feeds:
    def __init__(self, database: Database, hub: Hub) -> None:
        self._database = database
        self._hub = hub
        self._feeds: dict[tuple[Kind, UUID], _Feed] = {}

    async def follow(self, kind: Kind, stream: UUID, after: int = 0) -> AsyncIterator[list[FeedEvent]]:
        """Batches of events with a number above `after`, as they come; never ends by itself."""
        feed = self._feeds.setdefault((kind, stream), _Feed())
        feed.readers += 1
        try:
            while True:
                changed = self._hub.watch(stream)
                batch = await self._next(feed, kind, stream, after)
                if batch:
                    after = batch[-1].number
                    yield batch
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_AGAIN):
                        await changed.wait()
        finally:
            feed.readers -= 1
            if feed.readers == 0:
                self._feeds.pop((kind, stream), None)

    async def _next(self, feed: _Feed, kind: Kind, stream: UUID, after: int) -> list[FeedEvent]:
        if feed.newest > after and feed.events and feed.events[0].number <= after + 1:
            return [event for event in feed.events if event.number > after]
        if feed.newest >= 0 and after < feed.newest:
            return await self._read(kind, stream, after)  # further behind than what is kept
        waited = feed.looking.locked()
        async with feed.looking:
            if waited and feed.newest > after:
                return [event for event in feed.events if event.number > after]
            events = await self._read(kind, stream, max(after, feed.newest))
            if events and (feed.newest < 0 or events[0].number == feed.newest + 1):
                feed.events.extend(events)
                feed.newest = events[-1].number
            return events

    async def _read(self, kind: Kind, stream: UUID, after: int) -> list[FeedEvent]:
        async with self._database.statement() as connection:
            rows = (await connection.execute(_READ[kind], {"id": stream, "after": after, "page": PAGE})).all()
        return [
            FeedEvent(row.number, row.type, row.data.get("state"), encode(row.number, row.type, to_json(row.data).decode()))
            for row in rows
        ]
