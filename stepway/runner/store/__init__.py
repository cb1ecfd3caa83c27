"""What a store of runs keeps and promises; `memory` and `postgres` are the two that exist.

A *handler* is what users name: one row, which its latest run fills. A *run* is one execution: its journal (ticks of the
library, in order), its events (what readers of the stream see, numbered from 0) and its inbox (what was sent to it and has
not been taken into the journal). One server owns a run that is in its memory; a run that waits long, or for a free place,
has no owner, and any server may claim it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

Status = Literal["running", "completed", "failed", "cancelled"]
STATUSES: tuple[Status, ...] = ("running", "completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Handler:
    """One row as users see it; `result` is the event envelope of the stop event. Times are UTC."""

    handler_id: str
    workflow_name: str
    run_id: str
    status: Status
    started_at: datetime
    updated_at: datetime
    completed_at: datetime | None = None
    error: str | None = None
    result: Mapping[str, Any] | None = None

    @property
    def over(self) -> bool:
        return self.status != "running"


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to be made. `start`: the start event as the workflow's serializer writes it. `context`: a serialized context to go
    on with (JSON), or None. `owned`: this server runs it at once; else it waits without an owner until one claims it.
    """

    handler_id: str
    workflow_name: str
    run_id: str
    start: str | None
    context: str | None = None
    owned: bool = True


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a run's stream. `data`: the envelope, as JSON with its qualified name. `internal`: of the library's own."""

    seq: int
    internal: bool
    data: str


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended."""

    status: Literal["completed", "failed", "cancelled"]
    error: str | None = None
    result: Mapping[str, Any] | None = None
    context: str | None = None  # what a later run of the same handler goes on with (serialized state, JSON)


@dataclass(slots=True)
class Entry:
    """What one turn of a run adds, written whole or not at all. The owner numbers ticks and events itself, without gaps.

    `state`: the run's state store, when it has changed. `acks`: items of the inbox that `ticks` now contain.
    `snapshot`: replaces all ticks before `tick_seq` (compaction).
    """

    tick_seq: int
    ticks: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    state: str | None = None
    acks: list[int] = field(default_factory=list)
    end: End | None = None
    snapshot: str | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """An item of a run's inbox. `event`: as the workflow's serializer writes it; None asks the run to cancel."""

    id: int
    run_id: str
    event: str | None
    step: str | None


@dataclass(frozen=True, slots=True)
class Saved:
    """All that a run needs to go on. `released`: seconds since its owner let it go on purpose; None after a crash.

    `ticks` follow `snapshot` and begin at `tick_seq`; `next_event` is the number of the next event.
    """

    handler: Handler
    start: str | None
    context: str | None
    snapshot: str | None
    state: str | None
    tick_seq: int
    ticks: Sequence[str]
    next_event: int
    inbox: Sequence[Sent]
    released: float | None


@dataclass(frozen=True, slots=True)
class Retention:
    """Which ended handlers are kept: those younger than `age` seconds, at most the newest `number`; None is no bound.

    `events`: how many of a run's newest events are kept while it runs and after.
    """

    age: float | None = None
    number: int | None = None
    events: int | None = None


def up_to(events: Iterable[Event], limit: int, size: int | None) -> list[Event]:
    """The first ones: at most `limit`, and no more after `size` characters."""
    found: list[Event] = []
    for event in events:
        if len(found) >= limit or (size is not None and size <= 0):
            break
        found.append(event)
        size = size - len(event.data) if size is not None else None
    return found


class AlreadyRunning(Exception):
    """The handler has a run that has not ended."""


class UnknownHandler(Exception):
    """There is no handler of this id."""


class AlreadyOver(Exception):
    """The handler's run has ended."""


class StoreUnavailable(Exception):
    """The store cannot take this now (no connection, a full disk). What was asked has not been done."""


class Fenced(Exception):
    """This server was taken for dead, or the run was purged: it is not the owner any more, and nothing was written."""


class Store(Protocol):
    """One per server. All methods are for the event loop that called `start`."""

    durable: bool  # whether runs outlive the process; runs of a store that is not are never released

    async def start(self, lost: Callable[[], None]) -> None:
        """Open, and make what is missing (tables). `lost` is called when this server was fenced: its runs must stop unwritten;
        the store goes on under a new identity.
        """

    async def stop(self) -> None:
        """Write what is pending, give up ownership of all runs (others claim them at once), close."""

    def now(self) -> float:
        """Seconds since the epoch, by a clock that all servers of this store have in common, and that does not jump while this
        one lives. Only after `start`.
        """

    async def healthy(self) -> str | None:
        """None, or in words why the store cannot be written to."""

    async def create(self, run: NewRun) -> Handler:
        """Keep a new run, or restart an ended handler under the new run (its old journal, events and inbox go).

        Raises AlreadyRunning, StoreUnavailable.
        """

    def begin(self, run: NewRun) -> tuple[Handler, asyncio.Future[None]]:
        """As `create`, for a run under a new id that nobody is told of before its first entry is durable: it may begin at
        once, and is written with that entry, or some milliseconds later. The future raises StoreUnavailable, after which the
        run's entries are refused.
        """

    async def get(self, handler_id: str) -> Handler | None: ...

    async def ended_context(self, handler_id: str) -> str | None:
        """The context that the handler's last run left at its end."""

    async def page(
        self, statuses: Collection[str] | None, workflows: Collection[str] | None, limit: int | None, cursor: str | None,
        *, results: bool = True,
    ) -> tuple[list[Handler], str | None]:  # fmt: skip
        """Newest first, with the cursor of the next page; without `results` these may be left out, which may be large. Raises
        ValueError for a cursor that is none.
        """

    def append(self, run_id: str, entry: Entry) -> Awaitable[None]:
        """Entries of one run are written in the order of the calls; the awaitable ends when the entry is durable and its
        readers are being told. Retries by itself while the store is unavailable; raises Fenced.
        """

    async def events(
        self, run_id: str, after: int, limit: int, *, internal: bool, size: int | None = None
    ) -> list[Event]:
        """Durable events numbered above `after`, in order. `internal`: with the library's own. `size`: no more of them after so
        many bytes.
        """

    async def last_event(self, run_id: str) -> int:
        """The number of the newest durable event; -1 when there is none."""

    async def changed(self, run_id: str, after: int, timeout: float) -> None:
        """Return when there may be durable events above `after`, or the run has ended or gone, or the seconds have passed."""

    async def send(self, handler_id: str, event: str | None, step: str | None) -> Sent:
        """Keep an item for the handler's running run and tell its owner; durable when it returns. A run without an owner
        becomes claimable. Raises UnknownHandler, AlreadyOver, StoreUnavailable.
        """

    async def end_unowned(self, run_id: str, end: End, event: str) -> bool:
        """End a run that no server owns, with this last event (an envelope). False when it has an owner or has ended."""

    async def received(self) -> Sequence[Sent]:
        """Wait for, then take, items that were sent to runs which this server owns (each once while it owns the run)."""

    async def claim(self, free: Mapping[str, int]) -> Sequence[Saved]:
        """Own and load runs that nobody owns and that are due: runs of dead servers, released ones whose time has come or to
        which something was sent, queued ones. `free`: places by workflow name; others are left alone. Oldest first.
        """

    async def due(self) -> None:
        """Return when `claim` may have something new to give, at the latest after some seconds."""

    async def release(self, run_id: str, wake_after: float | None) -> None:
        """Give up ownership; due again after the seconds, at once if its inbox holds something, or when something is sent."""

    async def purge(self, handler_id: str) -> bool:
        """Forget a handler with all of its run. A run in someone's memory is fenced. False when it is unknown."""

    async def trim(self, retention: Retention) -> int:
        """Forget what the rule does not keep; how many handlers went."""
