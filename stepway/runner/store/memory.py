"""Runs that live as long as the process: dictionaries behind the interface of a store. Nothing is ever released or resumed."""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from stepway.runner.store import (
    AlreadyOver,
    AlreadyRunning,
    End,
    Entry,
    Event,
    Fenced,
    Handler,
    NewRun,
    Retention,
    Saved,
    Sent,
    UnknownHandler,
    up_to,
)

DUE_EVERY = 3600.0
_BOOT = time.time() - time.monotonic()


@dataclass(slots=True)
class _Row:
    handler: Handler
    number: int  # rises with each run; the order of lists
    start: str | None
    context: str | None
    owned: bool
    left: str | None = None
    events: list[Event] = field(default_factory=list)
    last: int = -1
    inbox: list[Sent] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        """Wake all who wait for a change."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class MemoryStore:
    durable = False

    def __init__(self, retention: Retention | None = None) -> None:
        self._keep_events = (retention or Retention()).events
        self._rows: dict[str, _Row] = {}
        self._by_run: dict[str, _Row] = {}
        self._queue: deque[str] = deque()
        self._sent: asyncio.Queue[Sent] = asyncio.Queue()
        self._due = asyncio.Event()
        self._numbers = itertools.count(1)
        self._ids = itertools.count(1)

    async def start(self, lost: Callable[[], None]) -> None:
        pass

    async def stop(self) -> None:
        for row in self._rows.values():
            row.tell()

    def now(self) -> float:
        return _BOOT + time.monotonic()

    def _time(self) -> datetime:
        return datetime.fromtimestamp(self.now(), UTC)

    async def healthy(self) -> str | None:
        return None

    def begin(self, run: NewRun) -> tuple[Handler, asyncio.Future[None]]:
        made: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        made.set_result(None)
        return self._create(run), made

    async def create(self, run: NewRun) -> Handler:
        return self._create(run)

    def _create(self, run: NewRun) -> Handler:
        known = self._rows.get(run.handler_id)
        if known is not None and not known.handler.over:
            raise AlreadyRunning(run.handler_id)
        if known is not None:
            self._forget(known)
        now = self._time()
        handler = Handler(run.handler_id, run.workflow_name, run.run_id, "running", now, now)
        row = _Row(handler, next(self._numbers), run.start, run.context, run.owned)
        self._rows[run.handler_id] = self._by_run[run.run_id] = row
        if not run.owned:
            self._queue.append(run.run_id)
            self._due.set()
        return handler

    async def get(self, handler_id: str) -> Handler | None:
        row = self._rows.get(handler_id)
        return row.handler if row is not None else None

    async def ended_context(self, handler_id: str) -> str | None:
        row = self._rows.get(handler_id)
        return row.left if row is not None else None

    async def page(
        self, statuses: Collection[str] | None, workflows: Collection[str] | None, limit: int | None, cursor: str | None,
        *, results: bool = True,
    ) -> tuple[list[Handler], str | None]:  # fmt: skip
        below = int(cursor) if cursor is not None else None
        rows = (
            row for row in reversed(self._rows.values())  # which are in the order of their numbers
            if (statuses is None or row.handler.status in statuses)
            and (workflows is None or row.handler.workflow_name in workflows)
            and (below is None or row.number < below)
        )  # fmt: skip
        found = list(itertools.islice(rows, None if limit is None else limit + 1))
        page = found[:limit]
        return [row.handler for row in page], str(page[-1].number) if page and len(page) < len(found) else None

    def append(self, run_id: str, entry: Entry) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        row = self._by_run.get(run_id)
        if row is None or row.handler.over:
            done.set_exception(Fenced(run_id))
            return done
        now = self._time()
        row.handler = replace(row.handler, updated_at=now)
        for event in entry.events:
            row.events.append(event)
            row.last = event.seq
        if self._keep_events is not None and len(row.events) > 2 * self._keep_events:
            del row.events[: -self._keep_events]
        if entry.acks:
            row.inbox = [one for one in row.inbox if one.id not in entry.acks]
        if entry.end is not None:
            self._end(row, entry.end, now)
        row.tell()
        done.set_result(None)
        return done

    def _end(self, row: _Row, end: End, now: datetime) -> None:
        row.handler = replace(
            row.handler, status=end.status, error=end.error, result=end.result, updated_at=now, completed_at=now
        )
        row.left = end.context
        row.start = row.context = None
        row.inbox.clear()

    async def events(
        self, run_id: str, after: int, limit: int, *, internal: bool, size: int | None = None
    ) -> list[Event]:
        row = self._by_run.get(run_id)
        if row is None or row.last <= after:
            return []
        first = row.events[0].seq if row.events else 0
        found = row.events[max(0, after + 1 - first) :]
        return up_to((one for one in found if internal or not one.internal), limit, size)

    async def last_event(self, run_id: str) -> int:
        row = self._by_run.get(run_id)
        return row.last if row is not None else -1

    async def changed(self, run_id: str, after: int, timeout: float) -> None:
        row = self._by_run.get(run_id)
        if row is None or row.handler.over or row.last > after:
            return
        try:
            async with asyncio.timeout(timeout):
                await row.changed.wait()
        except TimeoutError:
            pass

    async def send(self, handler_id: str, event: str | None, step: str | None) -> Sent:
        row = self._rows.get(handler_id)
        if row is None:
            raise UnknownHandler(handler_id)
        if row.handler.over:
            raise AlreadyOver(handler_id)
        item = Sent(next(self._ids), row.handler.run_id, event, step)
        row.inbox.append(item)
        if row.owned:
            self._sent.put_nowait(item)
        return item

    async def end_unowned(self, run_id: str, end: End, event: str) -> bool:
        row = self._by_run.get(run_id)
        if row is None or row.owned or row.handler.over:
            return False
        self._queue.remove(run_id)
        row.last += 1
        row.events.append(Event(row.last, False, event))
        self._end(row, end, self._time())
        row.tell()
        return True

    async def received(self) -> Sequence[Sent]:
        items = [await self._sent.get()]
        while not self._sent.empty():
            items.append(self._sent.get_nowait())
        return items

    async def claim(self, free: Mapping[str, int]) -> Sequence[Saved]:
        places = dict(free)
        claimed, waiting = list[Saved](), deque[str]()
        while self._queue:
            row = self._by_run[self._queue.popleft()]
            name = row.handler.workflow_name
            if places.get(name, 0) < 1:
                waiting.append(row.handler.run_id)
                continue
            places[name] -= 1
            row.owned = True
            claimed.append(
                Saved(row.handler, row.start, row.context, None, None, 0, (), row.last + 1, tuple(row.inbox), None)
            )
        self._queue = waiting
        return claimed

    async def due(self) -> None:
        try:
            async with asyncio.timeout(DUE_EVERY):
                await self._due.wait()
        except TimeoutError:
            pass
        self._due.clear()

    async def release(self, run_id: str, wake_after: float | None) -> None:
        raise NotImplementedError("Runs of this store stay in memory")

    async def purge(self, handler_id: str) -> bool:
        row = self._rows.get(handler_id)
        if row is None:
            return False
        self._forget(row)
        return True

    async def trim(self, retention: Retention) -> int:
        ended = sorted((row for row in self._rows.values() if row.handler.over), key=lambda row: -row.number)
        kept = ended[: retention.number]
        if retention.age is not None:
            oldest = self._time() - timedelta(seconds=retention.age)
            kept = [row for row in kept if (row.handler.completed_at or oldest) >= oldest]
        keep = {row.number for row in kept}
        gone = [row for row in ended if row.number not in keep]
        for row in gone:
            self._forget(row)
        return len(gone)

    def _forget(self, row: _Row) -> None:
        self._rows.pop(row.handler.handler_id, None)
        self._by_run.pop(row.handler.run_id, None)
        if not row.owned and row.handler.run_id in self._queue:
            self._queue.remove(row.handler.run_id)
        row.tell()
