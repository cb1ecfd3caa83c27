"""How the library runs a workflow here: our end of its runtime interface.

The library's control loop reduces *ticks* and tells an adapter of each; ours hands them to a `Sink` (`live.LiveRun`), which
makes the journal of them. A workflow that someone runs by hand (`await workflow.run()`, in a step of another one, say) goes
the library's ordinary way, past all this.
"""

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Protocol

from workflows import Workflow
from workflows.context.serializers import JsonSerializer
from workflows.context.state_store import InMemoryStateStore, StateStore
from workflows.events import Event, StartEvent, StopEvent
from workflows.plugins.basic import BasicRuntime
from workflows.runtime.control_loop.runner import _ControlLoopRunner
from workflows.runtime.types.internal_state import BrokerState
from workflows.runtime.types.named_task import (
    NamedTask,
    PendingStart,
    PendingWorker,
    WorkerTask,
    pick_highest_priority,
)
from workflows.runtime.types.plugin import (
    ExternalRunAdapter,
    InternalRunAdapter,
    RegisteredWorkflow,
    WaitForNextTaskResult,
    WaitResult,
    WaitResultTick,
    WaitResultTimeout,
    consume_current_run,
)
from workflows.runtime.types.results import StepWorkerFailed
from workflows.runtime.types.step_function import (
    StepWorkerFunction,
    as_step_worker_functions,
    create_workflow_run_function,
)
from workflows.runtime.types.ticks import WorkflowTick

_LEAVING = 0.2  # seconds for steps that are cancelled


class Sink(Protocol):
    """What a run is told of by its adapter, and asked for. None of it waits, but `turned`."""

    def now(self) -> float:
        """`Store.now`."""

    def ticked(self, tick: WorkflowTick) -> None:
        """The tick has been reduced; what follows from it comes next."""

    def published(self, event: Event) -> None: ...

    async def turned(self, tick: WorkflowTick) -> None:
        """All that follows from the tick has been done, but for steps, which begin when this returns."""

    def idle(self, seconds: float | None) -> None:
        """Nothing runs; the next timer of the run is due in `seconds`."""

    def busy(self) -> None: ...


class Adapter(InternalRunAdapter):
    """The control loop's side of one run. `inbox` takes ticks from outside."""

    def __init__(self, run_id: str, state: InMemoryStateStore[Any], sink: Sink) -> None:
        self._run_id = run_id
        self._sink = sink
        self.state = state
        self.inbox: asyncio.Queue[WorkflowTick] = asyncio.Queue()
        self.loop: _ControlLoopRunner | None = (
            None  # of the run, once it has begun; its `state` is what the ticks have made
        )

    @property
    def run_id(self) -> str:
        return self._run_id

    async def write_to_event_stream(self, event: Event) -> None:
        self._sink.published(event)

    async def get_now(self) -> float:
        return self._sink.now()

    async def send_event(self, tick: WorkflowTick) -> None:
        self.inbox.put_nowait(tick)

    async def wait_receive(self, timeout_seconds: float | None = None) -> WaitResult:
        try:
            async with asyncio.timeout(timeout_seconds):
                return WaitResultTick(tick=await self.inbox.get())
        except TimeoutError:
            return WaitResultTimeout()

    async def on_tick(self, tick: WorkflowTick) -> None:
        self._sink.ticked(tick)

    async def after_tick(self, tick: WorkflowTick) -> None:
        await self._sink.turned(tick)

    async def wait_for_next_task(
        self, running: list[NamedTask], pending: list[PendingStart], timeout: float | None = None
    ) -> WaitForNextTaskResult:
        waiting = self.inbox.empty() and not _works(running) and not _works(pending)
        if waiting:
            self._sink.idle(timeout)
        started = [one.start(asyncio.create_task(one.coro)) for one in pending]
        tasks = [*running, *started]
        try:
            done, _ = await asyncio.wait(
                [one.task for one in tasks], timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
        except asyncio.CancelledError:  # the library ends what began before; of these it has not heard yet
            for one in started:
                one.task.cancel()
            if started:
                await asyncio.wait([one.task for one in started], timeout=_LEAVING)
            raise
        if waiting:
            self._sink.busy()
        return WaitForNextTaskResult(pick_highest_priority(tasks, done) if done else None, started)

    def get_state_store(self, namespace: tuple[str, ...] = ()) -> StateStore[Any] | None:
        return None if namespace else self.state


def _works(tasks: Sequence[NamedTask] | Sequence[PendingStart]) -> bool:
    return any(isinstance(one, WorkerTask | PendingWorker) for one in tasks)


_running: ContextVar[Adapter | None] = ContextVar("stepway_runner_run", default=None)


class Runtime(BasicRuntime):
    """Runs served workflows with an adapter of ours; everything else as the library does by itself.

    What is read back from a journal may name the classes that the workflow declares, and no others: nothing is imported.
    """

    def __init__(self) -> None:
        super().__init__()
        self._default_serializer = JsonSerializer(allowed_types=[])
        self._made: dict[int, RegisteredWorkflow] = {}

    def serve(self, workflow: Workflow, additional_events: Sequence[type[Event]]) -> None:
        """Make this the workflow's runtime. `additional_events` may be read back, too."""
        steps = workflow._get_steps()
        vars(workflow)["_get_steps"] = lambda: (
            steps
        )  # looked up anew several times a run, a tenth of a short one's time
        workflow._switch_runtime(self)
        self._compose_serializer(workflow, workflow.serializer or self._default_serializer, *additional_events)
        self._made[id(workflow)] = RegisteredWorkflow(
            workflow,
            create_workflow_run_function(workflow, _control_loop),
            {name: _timed(step) for name, step in as_step_worker_functions(workflow).items()},
        )

    def get_serializer(self, workflow: Workflow) -> Any:
        known = self._serializer_cache.get(workflow)
        return known[1] if known is not None else super().get_serializer(workflow)

    def get_registered(self, workflow: Workflow) -> RegisteredWorkflow | None:
        return self._made.get(id(workflow))

    def launch_run(
        self, workflow: Workflow, adapter: Adapter, init: BrokerState, start: StartEvent | None
    ) -> asyncio.Task[StopEvent]:
        """Begin (with a start event) or go on (without one); the task ends as the run does."""
        token = _running.set(adapter)
        try:
            return asyncio.create_task(self._made[id(workflow)].workflow_run_fn(init, start))
        finally:
            _running.reset(token)

    def get_internal_adapter(self, workflow: Workflow) -> InternalRunAdapter:
        return _running.get() or super().get_internal_adapter(workflow)

    def run_workflow(self, *args: Any, **kwargs: Any) -> ExternalRunAdapter:
        token = _running.set(None)
        try:
            return super().run_workflow(*args, **kwargs)
        finally:
            _running.reset(token)


def _timed(step: StepWorkerFunction) -> StepWorkerFunction:
    """The library stamps a failure with the wall clock, and adds the delay of the next attempt to that: ours is the run's."""

    async def run(*args: Any, **given: Any) -> Any:
        output = await step(*args, **given)
        if (adapter := _running.get()) is None:
            return output
        failed_at = await adapter.get_now()
        return [
            one.model_copy(update={"failed_at": failed_at}) if isinstance(one, StepWorkerFailed) else one
            for one in output
        ]

    return run


async def _control_loop(start_event: Event | None, init_state: BrokerState | None, run_id: str) -> StopEvent:
    """The library's, but its state can be looked at."""
    run = consume_current_run()
    state = init_state or BrokerState.from_workflow(run.workflow)
    loop = _ControlLoopRunner(run.workflow, run.run_adapter, run.context, run.steps, state)
    if isinstance(run.run_adapter, Adapter):
        run.run_adapter.loop = loop
    return await loop.run(start_event=start_event)
