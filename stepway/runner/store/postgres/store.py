"""The store's interface, and which runs this server owns: `writer` writes, `keeper` keeps us alive in others' eyes."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg

from stepway.runner.store import (
    End,
    Entry,
    Event,
    Fenced,
    Handler,
    NewRun,
    Retention,
    Saved,
    Sent,
    StoreUnavailable,
    up_to,
)
from stepway.runner.store.postgres import claims, reading, tidying
from stepway.runner.store.postgres.claims import Claimed
from stepway.runner.store.postgres.connections import Database, Readers, title, unavailable
from stepway.runner.store.postgres.feeds import Feeds
from stepway.runner.store.postgres.keeper import Keeper
from stepway.runner.store.postgres.values import name
from stepway.runner.store.postgres.watching import POLL, Listener, Lookout, Teller, every
from stepway.runner.store.postgres.work import Create, Release, Send, Transaction, Undo, Work, append_of
from stepway.runner.store.postgres.writer import Writer

log = logging.getLogger(__name__)

SOON = 0.005  # seconds that the start of a run waits for its first entry
ANSWER = 8.0  # seconds within which people learn whether what they asked was done
STOP = 5.0
GIVE_UP = """
UPDATE stepway_runner.handler SET server_id = NULL, wake_at = '-infinity', released_at = NULL
WHERE server_id = %s AND status = 'running'
"""


@dataclass(slots=True)
class _Mine:
    """A run of this server. `closed`: it takes no more entries. `given`: items of its inbox that it has had."""

    handler_id: str
    given: set[int] = field(default_factory=set)
    unwritten: Create | None = None  # what makes the run, not yet given to the writer
    journaled: bool = False
    closed: bool = False
    loading: bool = False
    newest: asyncio.Future[Any] | None = None  # of its entries


class PostgresStore:
    """`lease`: seconds for which a server may be silent. Raises StoreUnavailable for a URL that is none."""

    durable = True

    def __init__(self, url: str, retention: Retention | None = None, *, lease: float = 10.0) -> None:
        self._keep_events = (retention or Retention()).events
        self._database = Database(url)
        self._lease = lease
        self._mine: dict[str, _Mine] = {}
        self._feeds = Feeds()
        self._items: deque[Sent] = deque()
        self._long: dict[str, int] = {}  # runs with more events than are kept, with the newest
        self._next_due: float | None = None  # by the loop's clock
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, lost: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self._lost = lost
        self._due, self._arrived, self._look_in = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._readers = Readers(self._database)
        self._writer = Writer(self._database, self._when_fenced, self._when_restarted)
        self._lookout = Lookout(self._feeds, self._readers)
        listener = Listener(self._lookout, self._look_in.set, self._due.set)
        self._keeper = Keeper(
            self._database, self._lease,
            began=lambda server_id: _call(loop, self._identify, server_id),
            heard=lambda payload: _call(loop, lambda: listener.heard(payload, self._writer.server_id)),
            taken_over=lambda: _call(loop, self._due.set),
        )  # fmt: skip
        self._teller = Teller(self._readers, lambda: self._keeper.company)
        try:
            await asyncio.to_thread(self._keeper.open)
        except (psycopg.Error, OSError) as error:
            raise unavailable(error) from None
        self._writer.begin()
        self._due.set()
        for work in (self._lookout.run(), self._teller.run(), every(POLL, self._look_in, self._look_into_inboxes)):
            self._spawn(work)

    async def stop(self) -> None:
        try:
            async with asyncio.timeout(STOP):
                await self._until_done(_nothing)  # all that is pending
                await self._close_keeper()
                await self._until_done(self._give_up)
                if self._keeper.company:
                    self._teller.tell(due=True)
                    await self._teller.flush()
        except TimeoutError:
            log.warning("The store has not taken all in %s s; others take over when they find this server gone", STOP)
        await self._close_keeper()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._writer.end()
        await self._readers.close()

    def now(self) -> float:
        return self._keeper.epoch + time.monotonic()

    async def healthy(self) -> str | None:
        return self._writer.trouble or (str(unavailable(Exception(told))) if (told := self._keeper.trouble) else None)

    # handlers

    async def create(self, run: NewRun) -> Handler:
        work = Create(run)
        work.settled = lambda _: self._when_created(run)
        try:
            made: Handler = await self._answer(work)
        except (asyncio.CancelledError, StoreUnavailable):
            self._undo_unheard(work)
            raise
        return made

    def _undo_unheard(self, work: Create) -> None:
        """Forget a run that was made all the same, though who asked for it does not know."""
        if work.done.done() and not work.done.cancelled() and work.done.exception() is None:
            self._mine.pop(work.run.run_id, None)
            self._writer.put(Undo(work.run.run_id))

    def begin(self, run: NewRun) -> tuple[Handler, asyncio.Future[None]]:
        work = Create(run, begun=True)
        work.failed = lambda: self._drop(run.run_id)
        mine = self._mine[run.run_id] = _Mine(run.handler_id, unwritten=work)
        self._feeds.own(run.run_id, -1)
        asyncio.get_running_loop().call_later(SOON, self._write_begun, mine)
        now = datetime.fromtimestamp(self.now(), UTC)
        handler = Handler(run.handler_id, run.workflow_name, run.run_id, "running", now, now)
        return handler, asyncio.ensure_future(self._begun(work))

    async def _begun(self, work: Create) -> None:
        try:
            await self._answered(work)
        except BaseException:
            self._drop(work.run.run_id)
            self._undo_unheard(work)
            raise

    def _write_begun(self, mine: _Mine) -> None:
        if mine.unwritten is not None:
            self._writer.put(mine.unwritten)
            mine.unwritten = None

    async def get(self, handler_id: str) -> Handler | None:
        async with self._readers.connection() as connection:
            return await reading.one_handler(connection, handler_id)

    async def ended_context(self, handler_id: str) -> str | None:
        async with self._readers.connection() as connection:
            return await reading.left_context(connection, handler_id)

    async def page(
        self, statuses: Collection[str] | None, workflows: Collection[str] | None, limit: int | None, cursor: str | None,
        *, results: bool = True,
    ) -> tuple[list[Handler], str | None]:  # fmt: skip
        below = int(cursor) if cursor is not None else None
        if below is not None and not 0 <= below < 1 << 63:
            raise ValueError(f"This is no cursor: {below}")
        async with self._readers.connection() as connection:
            found, after = await reading.handlers(connection, statuses, workflows, limit, below, results=results)
        return found, None if after is None else str(after)

    # what runs do

    def append(self, run_id: str, entry: Entry) -> asyncio.Future[None]:
        mine = self._mine.get(run_id)
        if mine is None or mine.closed:
            return _failed(Fenced(run_id))
        self._write_begun(mine)
        if _empty(entry):
            return _after(mine.newest)
        try:
            work = append_of(mine.handler_id, run_id, entry, cut=mine.journaled)
        except (TypeError, ValueError) as error:
            return _failed(error)
        work.settled = lambda _: self._when_appended(run_id, entry)
        work.failed = lambda: self._drop(run_id)
        mine.journaled |= bool(entry.ticks) or entry.snapshot is not None
        mine.closed = entry.end is not None
        mine.newest = work.done
        self._writer.put(work)
        return asyncio.shield(work.done)  # an entry is written also when nobody waits for it any more

    async def release(self, run_id: str, wake_after: float | None) -> None:
        mine = self._mine.get(run_id)
        if mine is None or mine.closed:
            raise Fenced(run_id)
        mine.closed = True
        self._write_begun(mine)
        await self._release(mine.handler_id, run_id, wake_after)

    # readers

    async def events(
        self, run_id: str, after: int, limit: int, *, internal: bool, size: int | None = None
    ) -> list[Event]:
        feed = self._feeds.get(run_id)
        if feed is not None and not feed.fresh and (feed.stale or not feed.has(after)):
            await self._lookout.look([feed])
            feed = self._feeds.get(run_id)  # unless the run has gone
        if feed is not None and feed.has(after):
            return up_to(feed.read(after, limit, internal=internal), limit, size)
        if feed is not None and feed.last <= after:
            return []
        async with self._readers.connection() as connection:
            return await reading.events(connection, run_id, after, limit, internal=internal, size=size)

    async def last_event(self, run_id: str) -> int:
        feed = self._feeds.get(run_id)
        if feed is not None and feed.fresh:
            return feed.last
        async with self._readers.connection() as connection:
            return await reading.last_event(connection, run_id)

    async def changed(self, run_id: str, after: int, timeout: float) -> None:
        feed = self._feeds.watch(run_id)
        if not feed.fresh and feed.stale:
            try:
                await self._lookout.look([feed])
            except StoreUnavailable:
                pass  # there is nothing to see until it is back
        if feed.last <= after and not feed.over:
            await feed.wait(timeout)

    # inboxes

    async def send(self, handler_id: str, event: str | None, step: str | None) -> Sent:
        work = Send(handler_id, event, step)
        work.settled = self._when_sent
        sent: tuple[Sent, int | None] = await self._answer(work)
        return sent[0]

    async def received(self) -> Sequence[Sent]:
        while not self._items:
            self._arrived.clear()
            await self._arrived.wait()
        items = list(self._items)
        self._items.clear()
        return items

    # runs without an owner

    async def end_unowned(self, run_id: str, end: End, event: str) -> bool:
        async with self._readers.connection() as connection:
            done = await tidying.end_unowned(connection, run_id, end, event)
        if done:
            self._lookout.ask([run_id])
            self._teller.tell(run_id=run_id)
        return done

    async def claim(self, free: Mapping[str, int]) -> Sequence[Saved]:
        places = {workflow: number for workflow, number in free.items() if number > 0}
        if not places:
            return []
        work = Transaction(run=lambda connection, server_id: claims.own_due(connection, server_id, places))
        work.settled = lambda claimed: self._when_claimed(claimed, wanted=not work.done.cancelled())
        self._writer.put(work)
        try:
            claimed: Claimed = await work.done
            return await self._load(claimed)
        except Fenced:
            return []
        except asyncio.CancelledError:
            if work.done.done() and not work.done.cancelled() and work.done.exception() is None:
                self._give_back(work.done.result())
            raise

    async def due(self) -> None:
        seconds = POLL
        if self._next_due is not None:
            seconds = min(POLL, max(0.0, self._next_due - asyncio.get_running_loop().time()))
        try:
            async with asyncio.timeout(seconds):
                await self._due.wait()
        except TimeoutError:
            pass
        self._due.clear()

    # what goes

    async def purge(self, handler_id: str) -> bool:
        async with self._readers.connection() as connection:
            run_id = await tidying.purge(connection, handler_id)
        if run_id is None:
            return False
        self._mine.pop(run_id, None)
        self._feeds.forget(run_id)
        self._teller.tell(run_id=run_id)
        return True

    async def trim(self, retention: Retention) -> int:
        async with self._readers.connection() as connection:
            gone = await tidying.trim_handlers(connection, retention)
            keep = self._keep_events = retention.events
            if keep is not None:
                long = dict(self._long)
                await tidying.trim_events(connection, {run_id: last - keep for run_id, last in long.items()})
                self._long = {run_id: last for run_id, last in self._long.items() if long.get(run_id) != last}
        for run_id in gone:
            self._feeds.forget(run_id)
            self._teller.tell(run_id=run_id)
        return len(gone)

    # what has become durable

    def _when_created(self, run: NewRun) -> None:
        if run.owned:
            self._mine[run.run_id] = _Mine(run.handler_id)
            self._feeds.own(run.run_id, -1)
        else:
            self._due.set()
            self._teller.tell(due=True)

    def _when_restarted(self, runs: list[str]) -> None:
        for run_id in runs:
            self._feeds.forget(run_id)
            self._long.pop(run_id, None)

    def _when_appended(self, run_id: str, entry: Entry) -> None:
        feed = self._feeds.get(run_id)
        if feed is None or not feed.local:
            return  # purged just now
        feed.add(entry.events)
        if self._keep_events is not None and entry.events and feed.last >= self._keep_events:
            self._long[run_id] = feed.last
        if entry.end is not None:
            self._mine.pop(run_id, None)
            self._feeds.end(run_id)
        if entry.events or entry.end is not None:
            self._teller.tell(run_id=run_id)

    def _when_sent(self, sent: tuple[Sent, int | None]) -> None:
        item, owner = sent
        if owner is None:
            self._due.set()
            self._teller.tell(due=True)
        elif owner == self._writer.server_id:
            self._hand_over([item])
        else:
            self._teller.tell(owner=owner)

    def _when_released(self, run_id: str, seconds: float | None) -> None:
        self._mine.pop(run_id, None)
        self._feeds.disown(run_id)
        self._due_in(seconds)
        if seconds is not None and seconds <= 0:
            self._teller.tell(due=True)

    def _when_claimed(self, claimed: Claimed, *, wanted: bool) -> None:
        for row, run_id in zip(claimed.rows, claimed.run_ids(), strict=True):
            self._mine[run_id] = _Mine(name(row[0]), journaled=True, loading=True)
        if not wanted:
            self._give_back(claimed)

    def _when_fenced(self) -> None:
        runs = list(self._mine.items())
        self._mine.clear()
        self._items.clear()
        for run_id, mine in runs:
            self._feeds.disown(run_id)
            if mine.unwritten is not None:
                mine.unwritten.fail(StoreUnavailable("This server was taken for dead"))
                mine.unwritten = None
        self._lost()
        self._due.set()

    def _drop(self, run_id: str) -> None:
        if self._mine.pop(run_id, None) is not None:
            self._feeds.disown(run_id)

    # ourselves

    def _identify(self, server_id: int) -> None:
        self._teller.server_id = server_id
        self._readers.title = title(server_id, "reader")
        self._writer.identify(server_id)

    async def _answer(self, work: Work) -> Any:
        self._writer.put(work)
        return await self._answered(work)

    async def _answered(self, work: Work) -> Any:
        try:
            async with asyncio.timeout(ANSWER):
                return await work.done
        except TimeoutError:
            raise StoreUnavailable(self._writer.trouble or f"The database has not answered in {ANSWER:g} s") from None

    async def _release(self, handler_id: str, run_id: str, wake_after: float | None) -> None:
        work = Release(handler_id, run_id, wake_after)
        work.settled = lambda seconds: self._when_released(run_id, seconds)
        work.failed = lambda: self._drop(run_id)
        self._writer.put(work)
        await work.done

    async def _load(self, claimed: Claimed) -> list[Saved]:
        """They are ours, so there is no giving up; but they may be lost, or purged, meanwhile."""
        while claimed.rows:
            try:
                async with self._readers.connection() as connection:
                    saved = await claims.load(connection, claimed)
                break
            except StoreUnavailable:
                await asyncio.sleep(0.5)
        else:
            saved = []
        self._due_in(claimed.next_due)
        loaded = [one for one in saved if (mine := self._mine.get(one.handler.run_id)) is not None and mine.loading]
        for one in loaded:
            mine = self._mine[one.handler.run_id]
            mine.loading = False
            mine.given.update(item.id for item in one.inbox)
            self._feeds.own(one.handler.run_id, one.next_event - 1)
        if loaded:
            self._look_in.set()  # for what was sent while they were read
        return loaded

    def _give_back(self, claimed: Claimed) -> None:
        for run_id in claimed.run_ids():
            mine = self._mine.get(run_id)
            if mine is not None:
                mine.closed = True
                self._spawn(self._release(mine.handler_id, run_id, 0.0))

    def _due_in(self, seconds: float | None) -> None:
        """Something is due then, among other things."""
        if seconds is None:
            return
        if seconds <= 0:
            self._due.set()
            return
        at = asyncio.get_running_loop().time() + seconds
        now = asyncio.get_running_loop().time()
        if self._next_due is None or self._next_due <= now or at < self._next_due:
            self._next_due = at

    def _hand_over(self, items: Sequence[Sent]) -> None:
        for item in items:
            mine = self._mine.get(item.run_id)
            if mine is None or mine.closed or item.id in mine.given:
                continue
            if mine.loading:
                continue  # it is looked into again when that is done
            mine.given.add(item.id)
            self._items.append(item)
        if self._items:
            self._arrived.set()

    async def _look_into_inboxes(self, called: bool) -> None:
        if not self._mine or not (called or self._keeper.company):
            return
        given = [item for mine in self._mine.values() for item in mine.given]
        async with self._readers.connection() as connection:
            found = await reading.items(connection, self._writer.server_id, given)
        self._hand_over(found)

    async def _until_done(self, run: Callable[[Any, int], Coroutine[Any, Any, None]]) -> None:
        while True:
            work = Transaction(run=run)
            self._writer.put(work)
            try:
                await work.done
                return
            except StoreUnavailable:
                continue
            except Fenced:
                return

    async def _give_up(self, connection: psycopg.AsyncConnection, server_id: int) -> None:
        await connection.execute(GIVE_UP, [server_id])
        await connection.execute("DELETE FROM stepway_runner.beat WHERE server_id = %s", [server_id])
        await connection.execute("DELETE FROM stepway_runner.server WHERE id = %s", [server_id])

    async def _close_keeper(self) -> None:
        self._keeper.ask_to_close()
        await self._teller.flush()  # wakes its thread
        await asyncio.to_thread(self._keeper.close)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)


async def _nothing(connection: psycopg.AsyncConnection, server_id: int) -> None:
    pass


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *values: Any) -> None:
    try:
        loop.call_soon_threadsafe(function, *values)
    except RuntimeError:
        pass  # the loop has ended without stopping us


def _failed(error: Exception) -> asyncio.Future[None]:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_exception(error)
    return done


def _empty(entry: Entry) -> bool:
    return (
        not (entry.ticks or entry.events or entry.acks or entry.end) and entry.state is None and entry.snapshot is None
    )


def _after(newest: asyncio.Future[Any] | None) -> asyncio.Future[None]:
    """Ends when all entries before have been written, as the newest of them did."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(written: asyncio.Future[Any]) -> None:
        if done.done():
            return
        if not written.cancelled() and (error := written.exception()) is not None:
            done.set_exception(error)
        else:
            done.set_result(None)

    if newest is None:
        done.set_result(None)
    else:
        newest.add_done_callback(end)
    return done
