"""The event sequences of jobs and topics, for many readers: each event is read and encoded once, however many follow it.

While somebody follows a sequence, one task reads what is new and keeps the newest events. Readers that are further
behind read the database by themselves until they have caught up.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

import structlog
from pydantic_core import to_json
from sqlalchemy import text

from shared.db.engine import Database
from shared.http.sse import encode
from shared.jobs.hub import Hub

KEPT = 256
PAGE = 200
LOOK_AGAIN = 10.0  # seconds: a lost notification costs this
PAUSE = 1.0  # seconds, after a fault of the database

_NUMBER = {"job": "seq", "topic": "topic_seq"}
_STREAM = {"job": "job_id", "topic": "topic"}
_READ = {
    kind: text(f"""SELECT {_NUMBER[kind]} AS number, type, data FROM jobs.event
                    WHERE {_STREAM[kind]} = :id AND {_NUMBER[kind]} > :after ORDER BY {_NUMBER[kind]} LIMIT :page""")
    for kind in _NUMBER
}
_NEWEST = {
    kind: text(f"SELECT coalesce(max({_NUMBER[kind]}), 0) FROM jobs.event WHERE {_STREAM[kind]} = :id")
    for kind in _NUMBER
}
Kind = Literal["job", "topic"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FeedEvent:
    number: int
    type: str
    state: str | None
    encoded: bytes


@dataclass(slots=True, eq=False)
class _Feed:
    """What the readers of one sequence share. `news` is set, and replaced, whenever `newest` grows."""

    readers: int = 0
    newest: int = -1  # number of the last event; -1 before the first look
    events: deque[FeedEvent] = field(default_factory=lambda: deque(maxlen=KEPT))
    news: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def grow(self, newest: int) -> None:
        self.newest = newest
        self.news.set()
        self.news = asyncio.Event()


class Feeds:
    def __init__(self, database: Database, hub: Hub) -> None:
        self._database = database
        self._hub = hub
        self._feeds: dict[tuple[Kind, UUID], _Feed] = {}

    async def start_after(self, kind: Kind, stream: UUID, seen: int | None) -> int:
        """After which event a reader goes on who has seen `seen`. Who knows of more than there is gets all of it.

        Such a reader comes from another history, as before the restore of an older database.
        """
        return seen if seen and seen <= await self._newest(kind, stream) else 0

    async def follow(self, kind: Kind, stream: UUID, after: int = 0) -> AsyncIterator[list[FeedEvent]]:
        """Batches of events with a number above `after`, as they come; never ends by itself."""
        feed = self._feeds.setdefault((kind, stream), _Feed())
        feed.readers += 1
        if feed.task is None:
            feed.task = asyncio.create_task(self._keep_reading(feed, kind, stream), name=f"feed-{kind}-{stream}")
        try:
            while True:
                news = feed.news
                if feed.newest <= after:
                    await news.wait()
                    continue
                batch = await self._next(feed, kind, stream, after)
                after = batch[-1].number if batch else feed.newest  # none: they are too old to be kept anywhere
                if batch:
                    yield batch
        finally:
            feed.readers -= 1
            if feed.readers == 0:
                self._feeds.pop((kind, stream), None)
                feed.task.cancel()

    async def _next(self, feed: _Feed, kind: Kind, stream: UUID, after: int) -> list[FeedEvent]:
        if feed.events and feed.events[0].number <= after + 1:
            return [event for event in feed.events if event.number > after]
        return await self._read(kind, stream, after)  # further behind than what is kept

    async def _keep_reading(self, feed: _Feed, kind: Kind, stream: UUID) -> None:
        while True:
            changed = self._hub.watch(stream)
            try:
                if feed.newest < 0:
                    feed.grow(await self._newest(kind, stream))
                while events := await self._read(kind, stream, feed.newest):
                    feed.events.extend(events)
                    feed.grow(events[-1].number)
            except Exception as error:  # the readers wait on; what they missed comes when the database is back
                log.warning("feed_failed", error=type(error).__name__)
                await asyncio.sleep(PAUSE)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN):
                    await changed.wait()

    async def _newest(self, kind: Kind, stream: UUID) -> int:
        async with self._database.statement() as connection:
            return int(await connection.scalar(_NEWEST[kind], {"id": stream}) or 0)

    async def _read(self, kind: Kind, stream: UUID, after: int) -> list[FeedEvent]:
        async with self._database.statement() as connection:
            rows = (await connection.execute(_READ[kind], {"id": stream, "after": after, "page": PAGE})).all()
        return [
            FeedEvent(
                row.number, row.type, row.data.get("state"), encode(row.number, row.type, to_json(row.data).decode())
            )
            for row in rows
        ]
