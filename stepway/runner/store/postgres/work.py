"""What the writer is asked to do: one object each, with a future for who asked.

`settled` is called when the work is durable, before the future's owner goes on, all of a batch in order; `failed` if it
never will be.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from psycopg import AsyncConnection

from stepway.runner.store import Entry, NewRun
from stepway.runner.store.postgres.values import blob, json_blob


def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


@dataclass(slots=True, eq=False, kw_only=True)
class Work:
    """`size`: bytes, roughly. `alone`: in a batch of its own, for one that it was in has failed over some value in it."""

    done: asyncio.Future[Any] = field(default_factory=_future)
    settled: Callable[[Any], None] | None = None
    failed: Callable[[], None] | None = None
    size: int = 0
    alone: bool = False

    def succeed(self, result: Any) -> None:
        if self.settled is not None:
            self.settled(result)
        if not self.done.done():
            self.done.set_result(result)

    def fail(self, error: BaseException) -> None:
        if self.failed is not None:
            self.failed()
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # whoever asked may have gone


@dataclass(slots=True, eq=False)
class Create(Work):
    """Its result: a Handler, or an exception's instance. `begun`: it runs already, under a new id; a fence voids it."""

    run: NewRun
    begun: bool = False

    def __post_init__(self) -> None:
        self.size = len(self.run.start or "") + len(self.run.context or "")


@dataclass(slots=True, eq=False)
class Append(Work):
    handler_id: str
    run_id: str
    ticks: list[tuple[int, bytes]]
    events: list[tuple[int, bool, bytes]]
    entry: Entry
    result: bytes | None
    cut: bool  # whether rows of the journal may have to go

    def __post_init__(self) -> None:
        entry = self.entry
        self.size = sum(len(tick) for _, tick in self.ticks) + sum(len(event[2]) for event in self.events)
        self.size += len(entry.state or "") + len(entry.snapshot or "") + len(self.result or b"")


def append_of(handler_id: str, run_id: str, entry: Entry, *, cut: bool) -> Append:
    """Raises what the JSON encoder raises of a result that is none."""
    ended = entry.end is not None
    ticks = [] if ended else [(entry.tick_seq + at, blob(tick) or b"") for at, tick in enumerate(entry.ticks)]
    events = [(event.seq, event.internal, blob(event.data) or b"") for event in entry.events]
    result = json_blob(entry.end.result) if entry.end is not None else None
    return Append(handler_id, run_id, ticks, events, entry, result, cut)


@dataclass(slots=True, eq=False)
class Send(Work):
    """Its result: (Sent, the owner's id or None), or an exception's instance."""

    handler_id: str
    event: str | None
    step: str | None

    def __post_init__(self) -> None:
        self.size = len(self.event or "")


@dataclass(slots=True, eq=False)
class Release(Work):
    """Its result: in how many seconds the run is due; None is not by itself."""

    handler_id: str
    run_id: str
    wake_after: float | None


@dataclass(slots=True, eq=False)
class Transaction(Work):
    """Statements of its own, in a transaction of this server; `run` gets the connection and the server's id."""

    run: Callable[[AsyncConnection, int], Awaitable[Any]]


@dataclass(slots=True, eq=False)
class Undo(Work):
    """Forget a run that was created for someone who does not know of it."""

    run_id: str
