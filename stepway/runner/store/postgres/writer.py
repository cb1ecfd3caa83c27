"""The one connection that writes what runs do: all that is pending, transaction by transaction.

While one transaction is on its way to the disk, what comes in waits for the next (group commit). Each transaction counts up
`server.written`, so that after a connection that broke during a commit the database itself says what became of it.
"""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import psycopg
from psycopg import AsyncConnection, errors

from stepway.runner.store import Fenced, StoreUnavailable
from stepway.runner.store.postgres.batch import FENCE, Batch
from stepway.runner.store.postgres.connections import Database, title, unavailable
from stepway.runner.store.postgres.work import Append, Create, Release, Send, Transaction, Undo, Work

log = logging.getLogger(__name__)

MOST_WORKS = 512
MOST_BYTES = 8 << 20  # of one transaction, unless one piece of work is larger
BACKOFF = (0.05, 0.1, 0.2, 0.5)  # seconds, the last one again and again
PROBE_BYTES = 1 << 16
# The tables are looked into by key only; a plan made while they were small must not read them whole later.
PLANS = "SET enable_seqscan TO off; SET enable_hashjoin TO off; SET enable_mergejoin TO off; SET jit TO off"
DURABLE = "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
OURS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s AND pid <> pg_backend_pid()
    AND datname = current_database() AND usename = current_user
"""
PASSING = (errors.DeadlockDetected, errors.SerializationFailure)
# Classes of errors over what was to be written; all others are of the store (no room, no memory, a shutdown, a standby).
OVER_VALUES = ("22", "23", "54")


class Writer:
    """`fenced()`: this server was taken for dead; what belonged to it has failed, and the writer waits for `identify`.
    `restarted(run_ids)`: these runs are gone, as their handlers have new ones.
    """

    def __init__(self, database: Database, fenced: Callable[[], None], restarted: Callable[[list[str]], None]) -> None:
        self.trouble: str | None = None
        self.server_id = 0
        self._database = database
        self._fenced = fenced
        self._restarted = restarted
        self._pending: deque[Work] = deque()
        self._called = asyncio.Event()
        self._identified = asyncio.Event()
        self._next_id = 0
        self._connection: AsyncConnection | None = None
        self._number = 0
        self._failures = 0
        self._task: asyncio.Task[None] | None = None

    def identify(self, server_id: int) -> None:
        """This server's id from the next fence on, which it now runs into unless it has already."""
        if self.server_id == 0:
            self.server_id = server_id
            return
        self._next_id = server_id
        self._identified.set()
        self.probe()

    def begin(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for work in self._pending:
            work.fail(Fenced("") if isinstance(work, Append | Release) else StoreUnavailable("This server is stopping"))
        self._pending.clear()
        await self._disconnect()

    def put(self, work: Work) -> None:
        self._pending.append(work)
        self._called.set()

    def probe(self) -> None:
        """See whether this server still may write."""
        self.put(Transaction(run=_nothing))

    async def _run(self) -> None:
        while True:
            works = self._take()
            if not works:
                self._called.clear()
                await self._wait()
                continue
            try:
                await self._write(works)
            except asyncio.CancelledError:
                self._pending.extendleft(reversed(works))
                raise
            except Exception as error:
                log.exception("A transaction of the writer failed in a way that it does not know")
                self._drop(works, error)
                await self._disconnect()

    async def _wait(self) -> None:
        """For work; while the store is in trouble, also for a moment to see whether it still is."""
        try:
            async with asyncio.timeout(1.0 if self.trouble is not None else None):
                await self._called.wait()
        except TimeoutError:
            self.put(Transaction(run=_probe))

    def _take(self) -> list[Work]:
        """As much as one transaction should hold; a handler is made at most once in it."""
        works, size, made = list[Work](), 0, set[str]()
        while self._pending and len(works) < MOST_WORKS:
            work = self._pending[0]
            if isinstance(work, Create | Send) and work.done.done():  # nobody waits for it any more
                self._pending.popleft()
                continue
            single = work.alone or isinstance(work, Transaction)
            again = isinstance(work, Create) and work.run.handler_id in made
            if works and (single or again or size + work.size > MOST_BYTES):
                break
            works.append(self._pending.popleft())
            size += work.size
            if isinstance(work, Create):
                made.add(work.run.handler_id)
            if single:
                break
        return works

    async def _write(self, works: list[Work]) -> None:
        server_id = self.server_id
        number = self._number + 1
        try:
            connection = await self._connected()
            results = await self._prepare(connection, works, server_id, number)
        except errors.DivisionByZero:
            await self._lose(works)
            return
        except (psycopg.Error, OSError) as error:
            await self._refused(works, error)
            return
        if results is None:  # some runs are not ours any more: without them
            self._pending.extendleft(reversed([one for one in works if not one.done.done()]))
            return
        self._number = number
        try:
            await connection.execute("COMMIT")
        except (psycopg.Error, OSError) as error:
            self._note(error)
            await self._disconnect()
            if not await self._was_written(works, server_id, number):
                await self._refused(works, error)
                return
        self._failures, self.trouble = 0, None
        self._settle(works, results)

    async def _prepare(
        self, connection: AsyncConnection, works: list[Work], server_id: int, number: int
    ) -> dict[Work, Any] | None:
        if isinstance(works[0], Transaction):
            await connection.execute("BEGIN")
            await connection.execute(FENCE, [number, server_id])
            return {works[0]: await works[0].run(connection, server_id)}
        batch = Batch(works)
        await batch.write(connection, server_id, number)
        if lost := batch.fenced():
            await connection.execute("ROLLBACK")
            for work in lost:
                work.fail(batch.results[work])
            return None
        self._restarted(batch.restarted)
        return batch.results

    def _settle(self, works: Iterable[Work], results: dict[Work, Any]) -> None:
        for work in works:
            result = results[work]
            if isinstance(result, Exception):
                work.fail(result)
            elif isinstance(work, Create) and work.done.cancelled():
                self.put(Undo(work.run.run_id))
            else:
                work.succeed(result)

    # what goes wrong

    async def _refused(self, works: list[Work], error: Exception) -> None:
        """Nothing of it was written. What runs have done waits; what people asked fails, unless it may go at once."""
        # Whatever it was: after an error in a pipeline psycopg believes in prepared statements that were never made.
        await self._disconnect()
        if isinstance(error, PASSING):
            self._pending.extendleft(reversed(works))
            return
        if _over_values(error):
            if len(works) > 1:
                for work in works:
                    work.alone = True
                self._pending.extendleft(reversed(works))
                return
            log.error("The store cannot keep what it was given: %s (%s)", type(error).__name__, _state(error))
            self._drop(works, error)
            return
        self._note(error)
        for work in works:
            if isinstance(work, Create | Send | Transaction):
                work.fail(unavailable(error))
        self._pending.extendleft(reversed([one for one in works if not one.done.done() or _must(one)]))
        await self._pause()

    def _note(self, error: Exception) -> None:
        told = str(unavailable(error))
        if self.trouble is None:
            log.warning("%s", told)
        self.trouble = told

    def _drop(self, works: Iterable[Work], error: Exception) -> None:
        """These cannot be written, nor can what follows them in the same runs."""
        runs = set()
        for work in works:
            work.fail(unavailable(error) if isinstance(work, Create | Send) else error)
            if isinstance(work, Append):
                runs.add(work.run_id)
        for work in [one for one in self._pending if isinstance(one, Append | Release) and one.run_id in runs]:
            self._pending.remove(work)
            work.fail(Fenced(""))

    async def _pause(self) -> None:
        seconds = BACKOFF[min(self._failures, len(BACKOFF) - 1)]
        self._failures += 1
        await asyncio.sleep(seconds)

    async def _lose(self, works: list[Work]) -> None:
        """This server was taken for dead: what its runs have done is void, what people asked goes on under the next id."""
        await self._disconnect()  # the next one bears the new name
        log.warning("This server was taken for dead; its runs go on elsewhere")
        everything = [*works, *self._pending]
        self._pending.clear()
        for work in everything:
            if isinstance(work, Append | Release):
                work.fail(Fenced(work.run_id))
            elif isinstance(work, Create) and work.begun:
                work.fail(StoreUnavailable("This server was taken for dead"))
            elif not isinstance(work, Transaction):
                self._pending.append(work)
            elif work.run not in (_probe, _nothing):
                work.fail(Fenced(""))
        self._fenced()
        await self._identified.wait()
        self._identified.clear()
        self.server_id, self._number = self._next_id, 0

    async def _was_written(self, works: list[Work], server_id: int, number: int) -> bool:
        """Whether the transaction of this number was committed. Waits until the database answers."""
        while True:
            try:
                connection = await self._connected()
                # Waits for the transaction, should a part of the server still be at it.
                found = await connection.execute(
                    "SELECT written FROM stepway_runner.server WHERE id = %s FOR UPDATE", [server_id]
                )
                row = await found.fetchone()
            except (psycopg.Error, OSError) as error:
                self._note(error)
                await self._disconnect()
                await self._pause()
                continue
            if row is None:  # taken for dead since: it may have been, and then nobody knows of its new runs
                for work in works:
                    if isinstance(work, Create):
                        self.put(Undo(work.run.run_id))
            return row is not None and int(row[0]) >= number

    # the connection

    async def _connected(self) -> AsyncConnection:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        await self._disconnect()
        mine = title(self.server_id, "writer")
        connection = await self._database.connect(mine)
        try:
            await connection.execute(OURS, [mine])
            await connection.execute(PLANS)
            await connection.execute(DURABLE)
        except BaseException:
            await connection.close()
            raise
        self._connection = connection
        return connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


def _must(work: Work) -> bool:
    """Whether the work is done even when nobody waits for it."""
    return isinstance(work, Append | Release | Undo)


def _state(error: Exception) -> str | None:
    return getattr(error, "sqlstate", None)


def _over_values(error: Exception) -> bool:
    state = _state(error)
    return state[:2] in OVER_VALUES if state else isinstance(error, psycopg.DataError | psycopg.ProgrammingError)


async def _nothing(connection: AsyncConnection, server_id: int) -> None:
    pass


async def _probe(connection: AsyncConnection, server_id: int) -> None:
    """Ask for room on the disk, and give it back."""
    await connection.execute("SAVEPOINT probe")
    await connection.execute(
        "INSERT INTO stepway_runner.inbox (run_id, event) VALUES ('', %b)", [os.urandom(PROBE_BYTES)]
    )
    await connection.execute("ROLLBACK TO probe")
