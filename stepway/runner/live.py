"""One run in this server's memory: what the library tells of it becomes entries of the journal.

An entry is whole: a tick with all that follows from it (the events it published, the state after it). It is written soon,
and in order; the result of a step is written before another step begins, so a step that has ended does not run again.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from workflows import Workflow
from workflows.context.serializers import BaseSerializer
from workflows.context.state_store import InMemoryStateStore
from workflows.events import (
    Event,
    InternalDispatchEvent,
    StartEvent,
    StopEvent,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
)
from workflows.runtime.types.internal_state import BrokerState
from workflows.runtime.types.step_id import StepId
from workflows.runtime.types.ticks import TickAddEvent, TickCancelRun, TickStepResult, TickWaiterTimeout, WorkflowTick

from stepway.runner import store
from stepway.runner.api.envelopes import Registry, Unserialisable, envelope_json
from stepway.runner.events import UnserialisableEvent
from stepway.runner.runtime import Adapter, Runtime
from stepway.runner.store import End, Entry, Handler, Sent, Store
from stepway.runner.waiters import Waiters, requirements

log = logging.getLogger(__name__)

LONG_JOURNAL = 500  # ticks, after which a journal becomes a snapshot
SOON = 0.005  # seconds that what nobody waits for may stay unwritten


@dataclass(frozen=True, slots=True)
class Served:
    """A workflow under its name. `events`: the classes that clients may name; `serializer`: of its journal."""

    name: str
    workflow: Workflow
    events: tuple[type[Event], ...]
    registry: Registry
    serializer: BaseSerializer
    state_type: type[Any]  # of `ctx.store`
    places: int | None  # how many of its runs may be in memory at once


class LiveRun:
    """The sink of one run. `over` ends with the handler as it was written at the run's end; it is cancelled when the run
    left this server before (released, fenced, handed over).
    """

    def __init__(
        self, served: Served, handler: Handler, keep: Store, state: InMemoryStateStore[Any],
        *, context: str | None = None, next_tick: int = 0, next_event: int = 0, max_event: int | None = None,
    ) -> None:  # fmt: skip
        self.served = served
        self.handler = handler
        self.adapter = Adapter(handler.run_id, state, self)
        self.made: asyncio.Future[None] | None = None  # whether the store has the run, where it began before
        self.over: asyncio.Future[Handler] = asyncio.get_running_loop().create_future()
        self.on_idle: Callable[[LiveRun, float | None], None] = lambda _run, _seconds: None
        self.on_busy: Callable[[LiveRun], None] = lambda _run: None
        self._store = keep
        self._next_tick = next_tick
        self._next_event = next_event
        self._entry = Entry(next_tick)
        self._timer: asyncio.TimerHandle | None = None
        self._in_tick = False
        self._ended = False
        self._left = False
        self._taken: dict[int, tuple[Event, int]] = {}
        self.waiters = Waiters()
        self._waits: list[tuple[float, asyncio.TimerHandle]] = []
        self._compact_at = next_tick + LONG_JOURNAL
        self._context = context
        self._max_event = max_event
        self._written_state = self._first_state = state.checkpoint().state
        self._task: asyncio.Task[StopEvent] | None = None

    # the run's life

    def launch(self, runtime: Runtime, init: BrokerState, start: StartEvent | None) -> None:
        self._task = runtime.launch_run(self.served.workflow, self.adapter, init, start)
        self._task.add_done_callback(self._stopped)

    def wait_to_be_made(self, made: asyncio.Future[None]) -> None:
        """The run goes on while the store writes that there is one, and stops if it cannot."""
        self.made = made
        made.add_done_callback(self._written)

    def take(self, item: Sent) -> None:
        """Hand the run what was sent to it."""
        if item.event is None:
            self.adapter.inbox.put_nowait(TickCancelRun())
            return
        event = read_back(self.served, item.event)
        self._taken[id(event)] = (event, item.id)
        step = StepId.root(item.step) if item.step is not None else None
        self.adapter.inbox.put_nowait(TickAddEvent(event=event, step_id=step))

    def arm(self, deadline: float, tick: TickWaiterTimeout) -> None:
        """End a wait that began before the run came here."""
        delay = max(0.0, deadline - self.now())
        handle = asyncio.get_running_loop().call_later(delay, self.adapter.inbox.put_nowait, tick)
        self._waits.append((deadline, handle))
        self.over.add_done_callback(lambda _: handle.cancel())

    def compact(self, state: BrokerState) -> None:
        """Replace the journal up to now, all of which is written, by what it has made."""
        context = state.to_serialized(self.served.serializer).model_dump(mode="json")
        self._entry.snapshot = json.dumps(
            {
                "context": context, "waiters": self.waiters.stored(),
                "requirements": requirements(state, self.served.serializer),
            }
        )  # fmt: skip
        self._compact_at = self._next_tick + LONG_JOURNAL

    def journal(self, tick: WorkflowTick) -> None:
        """Add a tick that was reduced before the run began here."""
        self._add_tick(tick)

    async def leave(self) -> bool:
        """Take the run out of memory, with all it has done written; False when it has ended meanwhile."""
        if self._ended or self._task is None:
            return False
        self._left = True
        self._task.cancel()
        await asyncio.wait([self._task])
        if self.ended:
            await asyncio.wait([self.over])
            return False
        await self._flush()
        self.over.cancel()
        return True

    def drop(self) -> None:
        """Stop without writing anything: the run is another server's now."""
        self._left = self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        self.over.cancel()

    def end(self, end: End, event: Event) -> None:
        """End the run from outside of it."""
        if self._ended:
            return
        self._finish(end, event)
        if self._task is not None:
            self._task.cancel()

    @property
    def ended(self) -> bool:
        return self._ended

    # what the library tells (`runtime.Sink`)

    def now(self) -> float:
        return self._store.now()

    def ticked(self, tick: WorkflowTick) -> None:
        self._in_tick = True
        self._add_tick(tick)

    def published(self, event: Event) -> None:
        if self._ended:
            return
        end = self._end_of(event) if self._in_tick else None
        if end is not None:
            self._finish(end, event)
            return
        try:
            data = self._written_event(event)
        except Unserialisable as error:
            log.warning("An event of run %s is not in its stream: %s", self.handler.run_id, error)
            data = envelope_json(UnserialisableEvent(event_type=type(event).__name__, error=str(error)))
        self._add_event(data, internal=isinstance(event, InternalDispatchEvent))
        self._soon()

    async def turned(self, tick: WorkflowTick) -> None:
        self._in_tick = False
        if isinstance(tick, TickStepResult) and self._store.durable:
            self._keep_state()
            await self._flush()
            if self._next_tick >= self._compact_at and self.adapter.loop is not None:
                self.compact(self.adapter.loop.state)
        else:
            self._soon()

    def idle(self, seconds: float | None) -> None:
        now = self.now()
        waits = [deadline - now for deadline, handle in self._waits if not handle.cancelled() and deadline > now]
        self.on_idle(self, min([*waits, *([] if seconds is None else [seconds])], default=None))

    def busy(self) -> None:
        self.on_busy(self)

    # the entry

    def _add_tick(self, tick: WorkflowTick) -> None:
        if not self._store.durable:
            return
        try:
            self._entry.ticks.append(self.served.serializer.serialize(tick))
        except Exception as error:
            raise Unserialisable(_what_of(tick)) from error
        self._next_tick += 1
        self.waiters.see(tick)
        if isinstance(tick, TickAddEvent) and (taken := self._taken.pop(id(tick.event), None)):
            self._entry.acks.append(taken[1])

    def _add_event(self, data: str, *, internal: bool) -> None:
        self._entry.events.append(store.Event(self._next_event, internal, data))
        self._next_event += 1

    def _written_event(self, event: Event) -> str:
        """Raises Unserialisable, also for an event that is too large."""
        data = envelope_json(event)
        if self._max_event is not None and len(data) > self._max_event:
            raise Unserialisable(
                f"{type(event).__name__} is too large: {len(data)} characters of JSON, of at most {self._max_event}"
            )
        return data

    def _keep_state(self) -> None:
        state = self.adapter.state.checkpoint().state
        if state is not self._written_state:
            self._entry.state = state_json(self.adapter.state, self.served.serializer)
            self._written_state = state

    def _soon(self) -> None:
        if self._timer is None and not self._ended:
            self._timer = asyncio.get_running_loop().call_later(SOON, self._flush)

    def _flush(self) -> asyncio.Future[None]:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        entry, self._entry = self._entry, Entry(self._next_tick)
        written = asyncio.ensure_future(self._store.append(self.handler.run_id, entry))
        written.add_done_callback(self._written)
        return written

    def _written(self, written: asyncio.Future[None]) -> None:
        if not written.cancelled() and written.exception() is not None:
            self.drop()

    # the end

    def _end_of(self, event: Event) -> End | None:
        match event:
            case WorkflowFailedEvent():
                return End("failed", error=str(event.exception) or type(event.exception).__name__)
            case WorkflowTimedOutEvent():
                return End("failed", error=f"Workflow timed out after {event.timeout}s")
            case WorkflowCancelledEvent():
                return End("cancelled")
            case StopEvent():
                return End("completed")
        return None

    def _finish(self, end: End, event: Event) -> None:
        """Write the run's last entry. A result that JSON has no words for makes the run a failed one."""
        try:
            data = self._written_event(event)
            if end.status == "completed":
                end = replace(end, result=json.loads(data), context=self._left_behind())
        except Unserialisable as error:
            end = End("failed", error=str(error))
            data = envelope_json(WorkflowFailedEvent(step_name="", exception=error))
        self._add_event(data, internal=False)
        self._ended = True
        self._entry.ticks.clear()  # the journal of a run that has ended is of no use
        self._entry.end = end
        now = datetime.fromtimestamp(self.now(), UTC)
        handler = replace(
            self.handler, status=end.status, error=end.error, result=end.result, updated_at=now, completed_at=now
        )
        self._flush().add_done_callback(lambda written: self._announce(written, handler))

    def _announce(self, written: asyncio.Future[None], handler: Handler) -> None:
        if self.over.done():
            return
        if written.cancelled() or written.exception() is not None:
            self.over.cancel()
        else:
            self.handler = handler
            self.over.set_result(handler)

    def _left_behind(self) -> str | None:
        """What the next run of this handler begins with."""
        if self.adapter.state.checkpoint().state is self._first_state:
            return self._context
        try:
            return state_json(self.adapter.state, self.served.serializer)
        except Unserialisable as error:
            if self._store.durable:
                raise
            log.warning("The next run of handler %s begins with an empty store: %s", self.handler.handler_id, error)
            return None

    def _stopped(self, task: asyncio.Task[StopEvent]) -> None:
        """The control loop is over. Without an end, something went wrong that it has no event for."""
        if self._ended or self._left:
            if not task.cancelled():
                task.exception()  # seen
            return
        error = None if task.cancelled() else task.exception()
        told = str(error) if isinstance(error, Unserialisable) else f"{type(error).__name__}: {error}"
        log.error("Run %s of %s broke off: %s", self.handler.run_id, self.served.name, told, exc_info=error)
        self.end(End("failed", error=told), WorkflowFailedEvent(step_name="", exception=RuntimeError(told)))


def read_back(served: Served, data: str) -> Event:
    """An event that the workflow's serializer wrote. Raises ValueError when it is none of the classes that it may be."""
    with served.serializer.validation_context():
        event = served.serializer.deserialize(data)
    if not isinstance(event, Event):
        raise ValueError(f"What was stored is no event: {type(event).__name__}")
    return event


def state_json(state: InMemoryStateStore[Any], serializer: BaseSerializer) -> str:
    """Raises Unserialisable, with the key that cannot be stored."""
    try:
        return json.dumps(state.to_dict(serializer))
    except Exception as error:
        raise Unserialisable(f"ctx.store holds what cannot be stored as JSON: {str(error)[:300]}") from error


def _what_of(tick: WorkflowTick) -> str:
    match tick:
        case TickStepResult():
            given = ", ".join(sorted({type(one).__name__ for one in _events_in(tick)})) or "a result"
            return f"Step '{tick.step_id}' gave {given} that cannot be stored as JSON"
        case TickAddEvent():
            return f"{type(tick.event).__name__} cannot be stored as JSON"
    return f"{type(tick).__name__} cannot be stored as JSON"


def _events_in(tick: TickStepResult) -> list[Event]:
    found = [getattr(one, "result", None) for one in tick.result]
    return [one for one in found if isinstance(one, Event)]
