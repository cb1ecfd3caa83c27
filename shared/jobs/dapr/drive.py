"""A run as a workflow: the job's function is driven over Dapr's tasks, from its start each time that something has ended.

What the function awaits becomes an activity of `shared.jobs.dapr.activities`, and the answer of each is in the workflow's
history, so that it is the same when the function is driven again. Nothing here looks at a clock or speaks to anybody.
When all that is left is to wait, the workflow ends: the ledger knows for what, and the run is given away again then.
"""

import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, Protocol, TypeGuard
from uuid import UUID

from dapr.ext.workflow import DaprWorkflowContext, when_any

from shared.jobs.attempts import CancelRequested
from shared.jobs.dapr.ports import Memory, RunOrder
from shared.jobs.declare import JobDef, StepDef, step_named
from shared.jobs.driver import Park, small_enough
from shared.jobs.endings import Overdue, failure_of, first_failure
from shared.jobs.run import Latch, NeverOpened, StepFailed
from shared.jobs.undoing import unreached

STEP, WAIT, UNDO, END = "step", "wait", "undo", "end"
WAKE = "wake"  # the event that makes what rests look again
FAULT_PAUSE = 1.0  # seconds before an activity that has failed by a fault of ours, or was lost, is tried again
FAULTS = 30  # such failures of one activity, after which the run is given back

_ABOUT = {"job_id", "fence", "kind", "version", "topic", "traceparent"}  # of its run, for every activity

Answer = dict[str, Any]


class Task(Protocol):
    """A task of Dapr's, as far as it is needed here."""

    @property
    def is_complete(self) -> bool: ...

    @property
    def is_failed(self) -> bool: ...

    def get_result(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Call:
    """Awaited by the job's function: an activity, and what it is given."""

    activity: str
    given: dict[str, Any]

    def __await__(self) -> Generator["Call", Any, Any]:
        return (yield self)


@dataclass(frozen=True, slots=True)
class Rest:
    """Awaited where nothing is to be done for `seconds` (None: for ever), or before one of the events has come."""

    seconds: float | None
    names: tuple[str, ...] = ()

    def __await__(self) -> Generator["Rest", None, None]:
        yield self


@dataclass(frozen=True, slots=True)
class Fork:
    """Awaited by `gather`: branches that are driven side by side. Gives their ends, in order."""

    branches: tuple[Awaitable[Any], ...]

    def __await__(self) -> Generator["Fork", "list[Branch]", "list[Branch]"]:
        return (yield self)


@dataclass(slots=True)
class Gate:
    """A latch (see `shared.jobs.run`). Awaited by a branch until another one has opened it."""

    is_open: bool = False

    def open(self) -> None:
        self.is_open = True

    async def passed(self) -> None:
        if not self.is_open:
            await self

    def __await__(self) -> Generator["Gate", None, None]:
        yield self


@dataclass(slots=True, eq=False)
class Branch:
    """One coroutine that is driven, and what it waits for now."""

    coroutine: Coroutine[Any, Any, Any]
    call: Call | None = None
    task: Task | None = None
    rest: Rest | None = None
    timer: Task | None = None
    gate: Gate | None = None
    faults: int = 0
    forked: "list[Branch]" = field(default_factory=list)
    done: bool = False
    result: Any = None
    error: BaseException | None = None

    def advance(self, send: Any = None) -> Any:
        """Drive it until it awaits something, which is returned, or ends."""
        self.call = self.task = self.rest = self.timer = self.gate = None
        try:
            return self.coroutine.send(send)
        except StopIteration as end:
            self.done, self.result = True, end.value
        except BaseException as fault:
            self.done, self.error = True, fault
        return None


class DaprRun:
    """The `Run` of this engine (see `shared.jobs.run`)."""

    def __init__(self, order: RunOrder) -> None:
        self.job_id: UUID = order.job_id
        self.attempt = order.attempt
        self._order = order
        self._keys: set[str] = set()
        self.begun: dict[str, tuple[StepDef, Any]] = {}

    async def step(self, definition: StepDef, argument: Any = None, *, key: str | None = None) -> Any:
        name = self._claim_key(key or definition.key)
        given = definition.argument.dump_python(argument, mode="json")
        memory = self._order.steps.get(name)
        if memory is not None and memory.begun:
            self.begun[name] = (definition, given)
        if self._is_remembered(memory, name):
            return definition.result.validate_python(memory.result)
        while True:
            answer = await Call(STEP, {"key": name, "step": definition.name, "argument": given, **_own(definition)})
            if "result" in answer:
                return definition.result.validate_python(answer["result"])
            if "failed" in answer:
                raise StepFailed(name, *answer["failed"])
            await Rest(answer["later"])

    async def gather(self, *branches: Awaitable[Any]) -> list[Any]:
        ends = await Fork(branches)
        for error in (one.error for one in ends):
            if isinstance(error, CancelRequested):
                raise error
        for error in (one.error for one in ends):
            if error is not None:
                raise error
        return [one.result for one in ends]

    def latch(self) -> Latch:
        return Gate()

    async def sleep(self, seconds: float, *, key: str) -> None:
        await self._wait(key, "Wait", seconds, None)

    async def wait_event(self, name: str, *, key: str, timeout: float | None = None) -> Any:
        return await self._wait(key, f"Wait for {name}", timeout, name)

    async def _wait(self, key: str, title: str, seconds: float | None, event: str | None) -> Any:
        name = self._claim_key(key)
        memory = self._order.steps.get(name)
        if self._is_remembered(memory, name):
            return memory.result
        token = None
        while True:
            given = {"key": name, "title": title, "seconds": seconds, "event": event, "token": token}
            answer = await Call(WAIT, given)
            if "result" in answer:
                return answer["result"]
            if "failed" in answer:
                raise StepFailed(name, *answer["failed"])
            token = answer["token"]
            await Rest(answer["left"], (event,) if event else ())

    def unreached(self, definition: JobDef) -> list[dict[str, Any]]:
        return unreached(definition, self._order.steps, self.begun)

    def _is_remembered(self, memory: Memory | None, key: str) -> TypeGuard[Memory]:
        """Whether the step's result is here. Raises its failure, and what ends the way of a run that is to be undone."""
        if memory is not None and memory.state == "failed" and memory.error is not None:
            raise StepFailed(key, memory.error["code"], memory.error["message"])
        succeeded = memory is not None and memory.state == "succeeded"
        if self._order.phase == "undo" and not succeeded:
            raise CancelRequested(str(self.job_id))
        return succeeded and memory is not None and memory.kept

    def _claim_key(self, key: str) -> str:
        if key in self._keys:
            raise ValueError(f"two steps of one run have the key {key!r}")
        self._keys.add(key)
        return key


class Driver:
    """Drives the branches of one run. `stopped` is why it goes no further; `park` for what all of it waits."""

    def __init__(self, context: DaprWorkflowContext, order: RunOrder) -> None:
        self._context = context
        self._about = order.model_dump(mode="json", include=_ABOUT)
        self._branches: list[Branch] = []
        self._wake: Task | None = None
        self.stopped: str | None = None
        self.park: Park | None = None

    def drive(self, coroutine: Coroutine[Any, Any, Any]) -> Generator[Task, Any, Branch]:
        """Until the function has ended, or nothing of it can go on."""
        main = Branch(coroutine)
        self._branches = [main]
        self._await(main, main.advance())
        self._pass_gates()
        while not main.done:
            working = [one for one in self._branches if one.task is not None]
            if self.stopped is not None and not working:
                break
            resting = [one for one in self._branches if one.rest is not None]
            if not working:
                seconds = [one.rest.seconds for one in resting if one.rest and one.rest.seconds is not None]
                names = frozenset(name for one in resting if one.rest for name in one.rest.names)
                if not resting:
                    main.done, main.error = True, NeverOpened()
                    break
                self.park = Park(min(seconds, default=None), names)
                break
            yield when_any(self._tasks(working, resting))
            self._settle(working, resting)
            self._pass_gates()
        for one in self._branches:
            with contextlib.suppress(BaseException):  # it is left where it is: its code has no say in that
                one.coroutine.close()
        return main

    def call(self, activity: str, given: dict[str, Any]) -> Generator[Any, Any, Answer]:
        """An activity beside all branches, until it has an answer."""
        for pause in (0.0, *[FAULT_PAUSE] * FAULTS):
            task = self._activity(Call(activity, given | {"pause": pause}))
            yield when_any([task])
            if not task.is_failed:
                answer: Answer = task.get_result() or {}
                return answer
        return {"stop": "stale"}

    def _tasks(self, working: list[Branch], resting: list[Branch]) -> list[Any]:
        tasks: list[Any] = [one.task for one in working]
        if self.stopped is not None:
            return tasks
        for one in resting:
            if one.timer is None and one.rest is not None and one.rest.seconds is not None:
                one.timer = self._context.create_timer(timedelta(seconds=one.rest.seconds))
            if one.timer is not None:
                tasks.append(one.timer)
        if any(one.rest is not None and one.rest.names for one in resting):
            if self._wake is None:
                self._wake = self._context.wait_for_external_event(WAKE)
            tasks.append(self._wake)
        return tasks

    def _settle(self, working: list[Branch], resting: list[Branch]) -> None:
        """Let those branches go on that have got what they waited for."""
        woken = self._wake is not None and self._wake.is_complete
        if woken:
            self._wake = None
        for one in working:
            if one.task is not None and one.task.is_complete:
                self._answered(one)
        if self.stopped is not None:
            return
        for one in resting:
            rested = one.timer is not None and one.timer.is_complete
            if one.rest is not None and (rested or (woken and one.rest.names)):
                self._await(one, one.advance())

    def _pass_gates(self) -> None:
        """Let those branches go on whose latch has been opened meanwhile."""
        while self.stopped is None:
            passing = [one for one in self._branches if one.gate is not None and one.gate.is_open]
            if not passing:
                return
            for one in passing:
                self._await(one, one.advance())

    def _answered(self, branch: Branch) -> None:
        task, call = branch.task, branch.call
        assert task is not None
        assert call is not None
        if task.is_failed:
            self._try_again(branch, call)
            return
        answer: Answer = task.get_result() or {}
        if "stop" in answer:
            self.stopped = self.stopped or answer["stop"]
            branch.task = None
        elif self.stopped is not None:
            branch.task = None
        else:
            branch.faults = 0
            self._await(branch, branch.advance(answer))

    def _try_again(self, branch: Branch, call: Call) -> None:
        branch.task = None
        branch.faults += 1
        if branch.faults > FAULTS:
            self.stopped = self.stopped or "released"
        if self.stopped is None:
            branch.task = self._activity(Call(call.activity, {**call.given, "pause": FAULT_PAUSE}))

    def _await(self, branch: Branch, wanted: Any) -> None:
        """Note what the branch waits for; where that is there already, drive it on."""
        while not branch.done:
            match wanted:
                case Call():
                    branch.call, branch.task = wanted, self._activity(wanted)
                    return
                case Rest():
                    branch.rest = wanted
                    return
                case Gate():
                    branch.gate = wanted
                    return
                case Fork():
                    forked = [Branch(_coroutine(one)) for one in wanted.branches]
                    self._branches += forked
                    for one in forked:
                        self._await(one, one.advance())
                    if not all(one.done for one in forked):
                        branch.forked = forked
                        return
                    wanted = branch.advance(forked)
                case _:
                    raise TypeError(f"a job awaited {type(wanted).__name__}, not its run")
        self._branches.remove(branch)
        parent = next((one for one in self._branches if branch in one.forked), None)
        if parent is not None and all(one.done for one in parent.forked):
            forked, parent.forked = parent.forked, []
            self._await(parent, parent.advance(forked))

    def _activity(self, call: Call) -> Any:
        return self._context.call_activity(call.activity, input=self._about | call.given)


def _own(definition: StepDef) -> dict[str, Any]:
    """What a job has changed of a step for this use: the activity knows it only by its name."""
    if definition == step_named(definition.name):
        return {}
    own = {"title": definition.title, "retry": asdict(definition.retry), "may_fail": definition.may_fail}
    return {"own": own}


Workflow = Callable[[DaprWorkflowContext, dict[str, Any]], Generator[Any, Any, None]]


def workflow(definition: JobDef) -> Workflow:
    """The job as a function that Dapr's workflow engine drives. Its input is a `RunOrder`."""

    def driven(context: DaprWorkflowContext, data: dict[str, Any]) -> Generator[Any, Any, None]:
        order = RunOrder.model_validate(data)
        run, driver = DaprRun(order), Driver(context, order)
        if order.overdue and order.phase == "forward":
            yield from _failed(driver, definition, order, Overdue())
            return
        main = yield from driver.drive(_whole(definition, run, order.input))
        if driver.stopped == "stale":
            return
        if order.phase == "undo":
            yield from _undo(driver, definition, run, order)
        else:
            yield from _end(driver, definition, order, main)

    return driven


async def _whole(definition: JobDef, run: DaprRun, given: Any) -> Any:
    result = await definition.fn(run, definition.input.validate_python(given))
    return small_enough(definition.result.dump_python(result, mode="json"), "job")


def _end(driver: Driver, definition: JobDef, order: RunOrder, main: Branch) -> Generator[Any, Any, None]:
    match driver.stopped:
        case "overdue":
            yield from _failed(driver, definition, order, Overdue())
        case "cancelled" | "released":
            yield from driver.call(END, {"how": "released"})
        case _ if driver.park is not None:
            names = sorted(driver.park.names)
            yield from _ended(driver, {"how": "parked", "seconds": driver.park.seconds, "names": names})
        case _ if isinstance(main.error, CancelRequested):
            yield from driver.call(END, {"how": "released"})
        case _ if main.error is not None:
            yield from _failed(driver, definition, order, main.error)
        case _:
            yield from _ended(driver, {"how": "succeeded", "result": main.result})


def _failed(driver: Driver, definition: JobDef, order: RunOrder, error: BaseException) -> Generator[Any, Any, None]:
    body = failure_of(order.job_id, order.kind, error)
    yield from _ended(driver, {"how": "failed", "error": body, "undo": definition.undo_on_failure})


def _ended(driver: Driver, end: dict[str, Any]) -> Generator[Any, Any, None]:
    answer = yield from driver.call(END, end)
    if answer.get("stop") == "cancelled":  # in the very moment of its end
        yield from driver.call(END, {"how": "released"})


def _undo(driver: Driver, definition: JobDef, run: DaprRun, order: RunOrder) -> Generator[Any, Any, None]:
    """Undo what has begun, last first."""
    left = run.unreached(definition)  # what was done before them may still be in use by them
    for key, (step, argument) in reversed(run.begun.items()) if not left else ():
        if step.undo is None:
            continue
        answer = yield from driver.call(UNDO, {"key": key, "step": step.name, "argument": argument})
        if "stop" in answer:
            return
        if "left" in answer:
            left.append(answer["left"])
            break  # what was done before it may still be in use by what is left
    yield from driver.call(END, {"how": "undone", "left": left, "failure": first_failure(order.error)})


def _coroutine(branch: Awaitable[Any]) -> Coroutine[Any, Any, Any]:
    async def awaited() -> Any:
        return await branch

    return branch if isinstance(branch, Coroutine) else awaited()
