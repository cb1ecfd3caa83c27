"""Wakes whoever waits for a job or a topic: in this process at once, in others by one coalesced NOTIFY per 20 ms.

A NOTIFY inside every transaction serialises the commits of the whole server, so it is sent afterwards, by a task. A
lost NOTIFY costs nothing but time: every waiter also looks again after a while.
"""

import asyncio
import contextlib
from uuid import UUID, uuid4
from weakref import WeakValueDictionary

import psycopg
import structlog
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from shared.db.engine import Database
from shared.jobs.lane import Lane

CHANNEL = "stepway_jobs"
WORK = "work"  # the name that wakes engines: there is something to claim
CANCEL = "cancel"  # the name that tells engines to look which of their runs are to be undone
_PAYLOAD_IDS = 170  # a payload is at most 8,000 bytes

log = structlog.get_logger(__name__)


def signal_name(job_id: UUID) -> str:
    """The name under which a waiting run hears that something was sent to its job."""
    return f"signal:{job_id}"


def end_name(job_id: UUID) -> str:
    """The name under which those hear of a job's end who want to know nothing else of it."""
    return f"end:{job_id}"


class Hub:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._lane = Lane(database.url, size=1)  # up to fifty notifications a second must cost little
        self._name = uuid4().hex  # begins each payload of ours, so that we pass over it when it comes back
        self._events: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()  # while somebody waits for them
        self._pending: set[str] = set()
        self._flusher: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._listener = asyncio.create_task(self._listen(), name="hub-listener")

    async def close(self) -> None:
        for task in (self._listener, self._flusher):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
        if self._pending:
            await self._notify()
        await self._lane.close()

    def publish(self, *names: UUID | str | None) -> None:
        """Say that these have changed, after the commit. None is ignored."""
        for name in names:
            if name is not None:
                self.wake(str(name))
                self._pending.add(str(name))
        if self._pending and (self._flusher is None or self._flusher.done()):
            self._flusher = asyncio.get_running_loop().create_task(self._flush(), name="hub-flush")

    def publish_after_commit(self, session: AsyncSession, *names: UUID | str | None) -> None:
        """The same, once the session's transaction has been committed; nothing when it is rolled back."""
        known: set[UUID | str | None] | None = session.info.get(self)
        if known is not None:
            known.update(names)
            return
        changed = session.info[self] = set(names)

        def done(committed: Session) -> None:
            if not committed.in_nested_transaction():  # the end of a savepoint is no commit
                self.publish(*changed)
                changed.clear()

        event.listen(session.sync_session, "after_commit", done)

    async def wait(self, name: UUID | str, timeout: float) -> bool:
        """Until it changes, or `timeout` seconds have passed. Look at the state before and after."""
        waiter = self.watch(name)
        try:
            async with asyncio.timeout(timeout):
                await waiter.wait()
        except TimeoutError:
            return False
        return True

    def watch(self, name: UUID | str) -> asyncio.Event:
        """An event that is set at the next change: take it, look at the state, then wait for it."""
        return self._events.setdefault(str(name), asyncio.Event())

    def wake(self, name: str) -> None:
        """Wake who waits in this process only."""
        waiter = self._events.pop(name, None)
        if waiter is not None:
            waiter.set()

    async def _flush(self) -> None:
        while self._pending:
            await asyncio.sleep(0.02)
            await self._notify()

    async def _notify(self) -> None:
        names, self._pending = list(self._pending), set()
        try:
            for start in range(0, len(names), _PAYLOAD_IDS):
                payload = " ".join([self._name, *names[start : start + _PAYLOAD_IDS]])
                await self._lane.one(
                    "SELECT pg_notify(%(channel)s, %(payload)s)", {"channel": CHANNEL, "payload": payload}
                )
        except Exception as error:  # the database is away: others find the change at their next look
            log.warning("notify_failed", error=type(error).__name__)

    async def _listen(self) -> None:
        while True:
            try:
                connection = await psycopg.AsyncConnection.connect(self._database.url, autocommit=True)
                async with connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    for name in list(self._events):  # what was missed while not listening
                        self.wake(name)
                    async for notice in connection.notifies():
                        sender, *names = notice.payload.split() or [""]
                        for name in names if sender != self._name else ():
                            self.wake(name)
            except Exception as error:  # most likely the database is away; nobody else would start this again
                log.warning("listen_lost", error=type(error).__name__)
            await asyncio.sleep(1.0)
