"""All runs of one server: starting, waiting, sending, cancelling, and which of them are in memory.

A run is *live* while it is in this server's memory. One that waits long for something from outside is released (of a durable
store), one that finds no free place waits in the store; both are claimed again when they are due, here or by another server.
"""

import asyncio
import json
import logging
import secrets
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, Literal

from workflows import Workflow
from workflows.context.context_types import SerializedContext
from workflows.context.state_store import InMemoryStateStore, infer_state_type
from workflows.errors import WorkflowRuntimeError
from workflows.events import Event, StartEvent, WorkflowCancelledEvent, WorkflowFailedEvent, WorkflowTimedOutEvent
from workflows.runtime.control_loop.reduce import _reduce_tick
from workflows.runtime.types.internal_state import BrokerState
from workflows.runtime.types.ticks import TickWakeup, WorkflowTickAdapter

from stepway.runner.api.envelopes import InvalidEvent, Registry, envelope_json
from stepway.runner.config import Config
from stepway.runner.live import LiveRun, Served, read_back
from stepway.runner.runtime import Runtime
from stepway.runner.store import AlreadyOver, End, Handler, NewRun, Saved, Sent, Store, StoreUnavailable, UnknownHandler
from stepway.runner.waiters import Waiters, require

log = logging.getLogger(__name__)

POLL = 5.0
MOST_EARLY = 1000
LEAVING = 0.5  # seconds for the steps that are cancelled when a server stops


class UnknownWorkflow(Exception):
    """No workflow of this name is served."""


class InvalidContext(ValueError):
    """The given context is none of this workflow."""


class Runs:
    """One per server, for one event loop. Workflows are added before `start_up`."""

    def __init__(self, store: Store, config: Config) -> None:
        self.store = store
        self.served: dict[str, Served] = {}
        self.started = False
        self._config = config
        self._runtime = Runtime()
        self._live: dict[str, LiveRun] = {}
        self._by_handler: dict[str, LiveRun] = {}
        self._count: Counter[str] = Counter()
        self._early: dict[str, list[Sent]] = {}  # what came for runs that are on their way into memory
        self._queued: set[str] = set()  # workflows of which runs may be waiting for a place
        self._freed = asyncio.Event()
        self._timers: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, name: str, workflow: Workflow, additional_events: Sequence[type[Event]] = ()) -> None:
        """Serve a workflow under a name. Raises what the library raises of a workflow that is not well-formed."""
        workflow.validate()
        self._runtime.serve(workflow, additional_events)
        events = tuple(dict.fromkeys((*workflow.events, *additional_events)))
        bounds = [one for one in (self._config.concurrent_runs, workflow._num_concurrent_runs) if one is not None]
        self.served[name] = Served(
            name, workflow, events, Registry(events), self._runtime.get_serializer(workflow),
            infer_state_type(workflow), min(bounds, default=None),
        )  # fmt: skip

    async def start_up(self) -> None:
        await self.store.start(self._lost)
        for loop in (self._claiming, self._receiving, self._trimming):
            self._spawn(self._forever(loop))
        self.started = True

    async def shut_down(self, grace: float) -> None:
        """Let runs end by themselves for `grace` seconds; what has not ended stays in the store, or is lost with it."""
        self.started = False
        if self._live:
            await asyncio.wait([run.over for run in self._live.values()], timeout=grace)
        for task in self._tasks:
            task.cancel()
        if self._live and not self.store.durable:
            log.warning("%d runs had not ended, and are lost with this server's memory", len(self._live))
        leaving = [asyncio.ensure_future(run.leave()) for run in self._live.values()]
        if leaving:
            await asyncio.wait(leaving, timeout=LEAVING)  # a step may not let itself be cancelled
        await self.store.stop()

    # what the API asks

    async def start(
        self,
        name: str,
        *,
        start_event: StartEvent | None,
        context: dict[str, Any] | None = None,
        handler_id: str | None = None,
        told: bool = True,
    ) -> Handler:
        """Begin a run, or keep it for a free place. Without `told` the run may not be durable yet: nobody is to learn of it
        but from `finished`. Raises UnknownWorkflow, InvalidContext, AlreadyRunning, StoreUnavailable.
        """
        served = self.served.get(name)
        if served is None:
            raise UnknownWorkflow(name)
        if not self.started:
            raise StoreUnavailable("This server is stopping")
        given = json.dumps(context) if context else None
        if given is None and handler_id is not None:
            left = await self.store.ended_context(handler_id)
            given = json.dumps({"version": 1, "state": json.loads(left)}) if left else None
        init, state, resumed = _begin(served, given)
        if resumed:
            start_event = None
        owned = self._places(served) > 0 and name not in self._queued
        new = NewRun(
            handler_id or secrets.token_urlsafe(9), name, secrets.token_urlsafe(15),
            served.serializer.serialize(start_event) if start_event is not None else None, given, owned,
        )  # fmt: skip
        self._count[name] += owned
        made = None
        try:
            if owned and not told and handler_id is None and await self.store.healthy() is None:
                handler, made = self.store.begin(new)
            else:
                handler = await self.store.create(new)
        except BaseException:
            self._count[name] -= owned
            raise
        if not owned:
            self._queued.add(name)
            return handler
        run = LiveRun(served, handler, self.store, state, context=_state_of(given), max_event=self._config.max_event)
        self._enter(run)
        if made is not None:
            run.wait_to_be_made(made)
        run.launch(self._runtime, init, start_event)
        for item in self._early.pop(handler.run_id, ()):
            self._take(run, item)
        return handler

    async def finished(self, handler: Handler, timeout: float | None = None) -> Handler:
        """Wait for the end of this run, wherever it runs. Raises TimeoutError, UnknownHandler when it was purged, and
        StoreUnavailable for one that began and could not be kept.
        """
        async with asyncio.timeout(timeout):
            while not handler.over:
                run = self._live.get(handler.run_id)
                if run is not None:
                    await asyncio.wait([run.over])
                    if not run.over.cancelled():
                        return run.over.result()
                    if run.made is not None:
                        await asyncio.shield(run.made)
                else:
                    await self.store.changed(handler.run_id, await self.store.last_event(handler.run_id), POLL)
                known = await self.store.get(handler.handler_id)
                if known is None or known.run_id != handler.run_id:
                    raise UnknownHandler(handler.handler_id)
                handler = known
        return handler

    async def get(self, handler_id: str) -> Handler:
        run = self._by_handler.get(handler_id)
        handler = run.handler if run is not None else await self.store.get(handler_id)
        if handler is None:
            raise UnknownHandler(handler_id)
        return handler

    async def page(
        self, statuses: Collection[str] | None, workflows: Collection[str] | None, limit: int | None, cursor: str | None,
        *, results: bool = True,
    ) -> tuple[list[Handler], str | None]:  # fmt: skip
        """A page of handlers, newest first, and the next page's cursor. Raises ValueError for a cursor that is none."""
        return await self.store.page(statuses, workflows, limit, cursor, results=results)

    async def send(self, handler_id: str, event: Event, step: str | None) -> None:
        """Give an event to a running run. Raises UnknownHandler, AlreadyOver, InvalidEvent, StoreUnavailable."""
        handler = await self.get(handler_id)
        if handler.over:
            raise AlreadyOver(handler_id)
        served = self.served.get(handler.workflow_name)
        if served is None:
            raise InvalidEvent(f"Workflow '{handler.workflow_name}' is not served here")
        if step is not None:
            try:
                served.workflow._validate_valid_step_message(step, event)
            except WorkflowRuntimeError as error:
                raise InvalidEvent(str(error)) from error
        data = served.serializer.serialize(event)
        try:
            read_back(served, data)
        except ValueError as error:
            raise InvalidEvent(f"{type(event).__name__} is no event of workflow '{served.name}'") from error
        await self.store.send(handler_id, data, step)

    async def cancel(self, handler_id: str, *, purge: bool) -> Literal["cancelled", "deleted"]:
        """End a run, and forget it with `purge`. Raises UnknownHandler, without `purge` also for one that has ended."""
        handler = await self.get(handler_id)
        if handler.over and not purge:
            raise UnknownHandler(handler_id)
        if not handler.over:
            await self._cancel(handler)
        if purge:
            await self.store.purge(handler_id)
            return "deleted"
        return "cancelled"

    async def _cancel(self, handler: Handler) -> None:
        end, event = End("cancelled"), WorkflowCancelledEvent()
        try:
            if not await self.store.end_unowned(handler.run_id, end, envelope_json(event)):
                await self.store.send(handler.handler_id, None, None)
            await self.finished(handler, self._config.drain)
        except TimeoutError:  # a step that does not let itself be cancelled
            if (run := self._live.get(handler.run_id)) is not None:
                run.end(end, event)
        except (AlreadyOver, UnknownHandler):
            pass

    # what is in memory

    def _places(self, served: Served) -> int:
        return 1_000_000 if served.places is None else served.places - self._count[served.name]

    def _enter(self, run: LiveRun) -> None:
        """The place has been counted."""
        handler = run.handler
        self._live[handler.run_id] = self._by_handler[handler.handler_id] = run
        run.over.add_done_callback(lambda _: self._left(run))
        if self.store.durable:
            run.on_idle, run.on_busy = self._when_idle, self._when_busy
        if (bound := self._config.max_run_time) is not None:
            age = self.store.now() - handler.started_at.timestamp()
            self._later(run, "bound", max(0.0, bound - age), self._overdue)

    def _left(self, run: LiveRun) -> None:
        for kind in ("idle", "bound"):
            self._when_gone(run, kind)
        handler = run.handler
        self._count[handler.workflow_name] -= 1
        if self._live.get(handler.run_id) is run:
            del self._live[handler.run_id]
        if self._by_handler.get(handler.handler_id) is run:
            del self._by_handler[handler.handler_id]
        if self._queued:
            self._freed.set()

    def _later(self, run: LiveRun, kind: str, seconds: float, then: Any) -> None:
        self._when_gone(run, kind)
        self._timers[run.handler.run_id, kind] = asyncio.get_running_loop().call_later(seconds, then, run)

    def _when_gone(self, run: LiveRun, kind: str) -> None:
        if (timer := self._timers.pop((run.handler.run_id, kind), None)) is not None:
            timer.cancel()

    def _overdue(self, run: LiveRun) -> None:
        bound = self._config.max_run_time or 0.0
        run.end(
            End("failed", error=f"The run took longer than this server allows ({bound:g} s)"),
            WorkflowTimedOutEvent(timeout=bound, active_steps=[]),
        )

    def _when_idle(self, run: LiveRun, seconds: float | None) -> None:
        grace = self._config.idle_release
        if seconds is not None and seconds <= grace * 2:
            return
        due = None if seconds is None else self.store.now() + seconds
        self._later(run, "idle", grace, lambda one: self._spawn(self._release(one, due)))

    def _when_busy(self, run: LiveRun) -> None:
        self._when_gone(run, "idle")

    async def _release(self, run: LiveRun, due: float | None) -> None:
        if (bound := self._config.max_run_time) is not None:
            latest = run.handler.started_at.timestamp() + bound
            due = latest if due is None else min(due, latest)
        if await run.leave():
            await self.store.release(run.handler.run_id, None if due is None else max(0.0, due - self.store.now()))

    def _lost(self) -> None:
        for run in list(self._live.values()):
            run.drop()

    # what comes from the store

    async def _claiming(self) -> None:
        due, freed = self.store.due(), self._freed.wait()
        waits = [asyncio.ensure_future(due), asyncio.ensure_future(freed)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()
        self._freed.clear()
        free = {name: places for name, one in self.served.items() if (places := self._places(one)) > 0}
        claimed = await self.store.claim(free)
        got = Counter(one.handler.workflow_name for one in claimed)
        self._queued -= {name for name, places in free.items() if got[name] < places}
        for saved in claimed:
            self._resume(saved)
            await asyncio.sleep(0)

    def _resume(self, saved: Saved) -> None:
        handler = saved.handler
        served = self.served[handler.workflow_name]
        self._count[served.name] += 1
        try:
            run, init, start = self._rebuild(served, saved)
        except Exception as error:
            log.exception("Run %s of %s cannot go on", handler.run_id, served.name)
            run = LiveRun(
                served, handler, self.store, _store_of(served, None), next_tick=saved.tick_seq + len(saved.ticks),
                next_event=saved.next_event,
            )  # fmt: skip
            self._enter(run)
            told = f"The run cannot go on from what was stored: {type(error).__name__}: {str(error)[:500]}"
            run.end(End("failed", error=told), WorkflowFailedEvent(step_name="", exception=RuntimeError(told)))
            return
        self._enter(run)
        run.launch(self._runtime, init, start)
        for item in (*saved.inbox, *self._early.pop(handler.run_id, ())):
            self._take(run, item)

    def _rebuild(self, served: Served, saved: Saved) -> tuple[LiveRun, BrokerState, StartEvent | None]:
        init, state, _ = _begin(served, saved.context)
        if saved.state is not None:
            state = _store_of(served, json.loads(saved.state))
        if saved.snapshot is not None:
            snapshot = json.loads(saved.snapshot)
            parsed = SerializedContext.from_dict_auto(snapshot["context"], served.serializer)
            init = BrokerState.from_serialized(parsed, served.workflow, served.serializer)
            require(init, snapshot.get("requirements", []), served.serializer)
        next_tick = saved.tick_seq + len(saved.ticks)
        run = LiveRun(
            served, saved.handler, self.store, state, context=saved.state or _state_of(saved.context), next_tick=next_tick,
            next_event=saved.next_event, max_event=self._config.max_event,
        )  # fmt: skip
        if saved.snapshot is not None:
            run.waiters = Waiters(snapshot["waiters"])
        if next_tick == 0:
            start = read_back(served, saved.start) if saved.start is not None else None
            return run, init, start  # type: ignore[return-value]
        with served.serializer.validation_context():
            ticks = [WorkflowTickAdapter.validate_python(served.serializer.deserialize(one)) for one in saved.ticks]
        if saved.released is not None:  # its timeout has gone on while it was not in memory
            now = self.store.now()
            wake = TickWakeup(due=now, stamped_at=now)
            run.journal(wake)
            ticks.append(wake)
        for tick in ticks:
            init, _ = _reduce_tick(tick, init, self.store.now(), run_id=saved.handler.run_id)
            run.waiters.see(tick)
        for deadline, tick in run.waiters.pending(init):
            run.arm(deadline, tick)
        return run, init, None

    async def _receiving(self) -> None:
        """The store gives each item once, also for a run that it has just given, or is giving, to this server."""
        for item in await self.store.received():
            if (run := self._live.get(item.run_id)) is None:
                self._early.setdefault(item.run_id, []).append(item)
                if len(self._early) > MOST_EARLY:  # of runs that never came
                    del self._early[next(iter(self._early))]
            elif not run.ended:
                self._take(run, item)

    def _take(self, run: LiveRun, item: Sent) -> None:
        """What cannot be read back (its class has gone, say) would never leave the inbox, nor the run its wait."""
        try:
            run.take(item)
        except Exception as error:
            log.exception("What was sent to run %s cannot be read", item.run_id)
            told = f"What was sent to the run cannot be read: {type(error).__name__}: {str(error)[:500]}"
            run.end(End("failed", error=told), WorkflowFailedEvent(step_name="", exception=RuntimeError(told)))

    async def _trimming(self) -> None:
        await self.store.trim(self._config.retention)
        await asyncio.sleep(30)

    async def _forever(self, turn: Any) -> None:
        """One turn after the other; an error (the store is away, say) ends a turn, not the loop."""
        while True:
            try:
                await turn()
            except Exception as error:
                log.warning("%s failed, and is tried again: %s", turn.__name__.strip("_"), error, exc_info=error)
                await asyncio.sleep(1)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _begin(served: Served, context: str | None) -> tuple[BrokerState, InMemoryStateStore[Any], bool]:
    """State and store of a new run, and whether the context is of a run in the middle, which needs no start event.

    Raises InvalidContext.
    """
    if context is None:
        return BrokerState.from_workflow(served.workflow), _store_of(served, None), False
    try:
        parsed = SerializedContext.from_dict_auto(json.loads(context), served.serializer)
        init = BrokerState.from_serialized(parsed, served.workflow, served.serializer)
        return init, _store_of(served, parsed.state or None), parsed.is_running
    except Exception as error:
        raise InvalidContext(f"The context cannot be used: {str(error)[:500]}") from error


def _store_of(served: Served, state: dict[str, Any] | None) -> InMemoryStateStore[Any]:
    if state:
        return InMemoryStateStore.from_dict(state, served.serializer)
    return InMemoryStateStore(served.state_type())


def _state_of(context: str | None) -> str | None:
    if context is None:
        return None
    state = json.loads(context).get("state")
    return json.dumps(state) if state else None
