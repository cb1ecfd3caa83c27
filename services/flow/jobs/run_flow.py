"""Drives one execution of a flow: which task comes when, with what, and what its end means for the others.

A task is one step of the job, by the task's own name; loops, waits and sub-flows are a few (`name[3]`, `name:wait`). All that is
decided here is decided by the definition and by what steps have returned, so it is the same when it is driven again.
"""

from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from services.flow.checks import checked_inputs
from services.flow.jobs.steps import Child, Outputs, Refused, Skipped, TaskOrder, keep, refuse_task, run_task, skip_task
from services.flow.jobs.sub_flows import SubFlows
from services.flow.known import task_types
from services.flow.values import MOST, is_spilled
from shared.contracts.flows import ALL_OUTPUTS, MAX_RUN_INPUT, RUN_FLOW, FlowResult, FlowRun, TaskDone
from shared.flows import conditions, graph
from shared.flows.conditions import ConditionFault
from shared.flows.definition import Retry, Task, loop_body
from shared.flows.dialects import DIALECTS
from shared.flows.faults import Faults
from shared.flows.references import Reference, ReferenceFault, Template, compile_value
from shared.flows.sight import Sight
from shared.jobs.declare import RetryPolicy, job
from shared.jobs.run import Run, StepFailed
from stepway.tasks import TaskError, TaskType

MOST_ITEMS = 1000
CANCELLED = "sub_flow_cancelled"


@job(RUN_FLOW, slots=32, max_input=MAX_RUN_INPUT)
async def run_flow(run: Run, spec: FlowRun) -> FlowResult:
    execution = Execution(run, spec)
    if spec.flow.execution == "parallel":
        await execution.all_as_they_may()
    else:
        for task in spec.flow.tasks:
            await execution.task(task)
    return FlowResult(outputs=await execution.outputs())


@dataclass(frozen=True, slots=True)
class Place:
    """Where a task is: by itself, or as the body of a loop, at one of its items."""

    key: str
    item: Mapping[str, Any] = field(default_factory=dict)  # `item` and `index`, or `output`: what else has a name here
    may_fail: bool = False  # the flow goes on without it


class Execution:
    """`_ended` has what each task has given; None for one that failed and was passed over. `_lost`: the loops that failed."""

    def __init__(self, run: Run, spec: FlowRun) -> None:
        self._run = run
        self._sub_flows = SubFlows(run)
        self._flow = spec.flow
        self._inputs = spec.inputs
        self._dialect = spec.dialect
        self._notation = DIALECTS[spec.dialect].notation
        self._types = task_types()
        self._tasks = {task.name: task for task in spec.flow.tasks}
        self._ended: dict[str, TaskDone | None] = {}
        self._failed = False
        self._lost: set[str] = set()

    async def all_as_they_may(self) -> None:
        """Each task as soon as those have ended that it needs. After a failure no other begins."""
        latches = {task.name: self._run.latch() for task in self._flow.tasks}
        needs = graph.needs(self._flow)

        async def one(task: Task) -> None:
            try:
                for name in needs[task.name]:
                    await latches[name].passed()
                if not self._failed:
                    await self.task(task)
            finally:
                latches[task.name].open()

        await self._all([one(task) for task in self._flow.tasks])

    async def _all(self, branches: list[Coroutine[Any, Any, None]]) -> None:
        """Side by side to their ends. Of several failures that is raised which is not merely a stop for another's sake."""
        failures: dict[int, StepFailed] = {}

        async def one(number: int, branch: Coroutine[Any, Any, None]) -> None:
            try:
                await branch
            except StepFailed as failure:
                failures[number] = failure
                raise

        try:
            await self._run.gather(*(one(number, branch) for number, branch in enumerate(branches)))
        except StepFailed:
            first = min(failures, key=lambda number: (failures[number].code == CANCELLED, number))
            raise failures[first] from None

    async def task(self, task: Task) -> None:
        """One task to its end, whatever that is."""
        try:
            self._ended[task.name] = await self._done(task, Place(task.name, may_fail=task.on_error != "fail"))
        except StepFailed:
            if task.on_error == "fail":
                self._failed = True
                await self._sub_flows.stop()
                raise
            self._ended[task.name] = None
            if task.on_error == "default":
                self._ended[task.name] = TaskDone(outputs=await self._fallback(task, Place(task.name)))

    async def outputs(self) -> dict[str, Any]:
        """What the flow gives, as it may be seen: whoever reads the job reads it. A parent gets it as it is, from its step."""
        given: dict[str, Any] = {}
        place = Place(ALL_OUTPUTS, {"output": given})
        for output in self._flow.outputs:
            given[output.name] = await self._resolved(compile_value(output.value), place)
        sight = Sight(self._flow, self._types)
        if not sight.hidden_results() and len(FlowResult(outputs=given).model_dump_json()) <= MOST:
            return given
        return sight.results((await self._kept(given, place)).outputs)

    # ---- one task

    async def _done(self, task: Task, place: Place) -> TaskDone:
        template = compile_value(task.inputs)
        reason = await self._why_not(task, template, place)
        if reason is not None:
            skipped: TaskDone = await self._run.step(skip_task, Skipped(reason=reason), key=place.key)
            return skipped
        match task.type:
            case "flow.delay":
                return await self._delay(task, place)
            case "flow.wait_event":
                return await self._event(task, place)
            case "flow.foreach":
                return await self._each(task, place)
            case "flow.subworkflow":
                return await self._sub(task, place)
        values = self._values(template.references, place)
        order = TaskOrder(type=task.type, inputs=task.inputs, values=values, dialect=self._dialect)
        own = replace(run_task, title=task.name, retry=policy(task, self._types[task.type]), may_fail=place.may_fail)
        done: TaskDone = await self._run.step(own, order, key=place.key)
        return done

    async def _why_not(self, task: Task, inputs: Template, place: Place) -> str | None:
        """Why the task is passed over; None when it is to run."""
        if task.condition is not None:
            condition = conditions.compile_condition(task.condition, "condition", Faults())
            values = self._values((use.reference for use in conditions.uses(condition)), place)
            try:
                if not conditions.evaluate(condition, values):
                    return "Its condition does not hold."
            except ConditionFault as fault:
                await self._refuse(place, "bad_condition", fault.told(self._notation))
        for name in self._required(task, inputs):
            before = self._ended.get(name, TaskDone())
            if before is None:
                return f"It needs what {name} gives, which failed."
            if before.status == "skipped":
                return f"It needs what {name} gives, which was skipped."
        return None

    def _required(self, task: Task, inputs: Template) -> Iterable[str]:
        """The tasks of which a whole output is the value of an input that the task cannot do without."""
        required = {one.name for one in self._types[task.type].inputs if one.required}
        return [use.reference.task for use in inputs.uses if use.whole and use.reference.task and use.path in required]

    async def _fallback(self, task: Task, place: Place) -> dict[str, Any]:
        place = replace(place, key=f"{place.key}:fallback")
        given: dict[str, Any] = await self._resolved(compile_value(task.fallback or {}), place)
        return given

    # ---- what the engine does itself

    async def _delay(self, task: Task, place: Place) -> TaskDone:
        given = await self._now(task, place)
        await self._run.sleep(float(given["seconds"]), key=f"{place.key}:wait")
        return await self._kept({}, place)

    async def _event(self, task: Task, place: Place) -> TaskDone:
        given = await self._now(task, place)
        data = await self._run.wait_event(given["name"], key=f"{place.key}:wait", timeout=given["timeout"])
        return await self._kept({"data": data}, place)

    async def _each(self, task: Task, place: Place) -> TaskDone:
        given = await self._now(task, place, but="task")
        items, lanes, body = given["items"], int(given["concurrency"]), loop_body(task)
        if body is None or len(items) > MOST_ITEMS:
            await self._refuse(
                place, "too_many", f"The input items has {len(items)} of them; {MOST_ITEMS} are the most."
            )
        results: list[Any] = [None] * len(items)

        async def lane(first: int) -> None:
            for index in range(first, len(items), lanes):
                if not self._is_wanted(place.key):
                    return
                may_fail = place.may_fail or body.on_error != "fail"
                at = Place(f"{place.key}[{index}]", {"item": items[index], "index": index}, may_fail)
                try:
                    results[index] = await self._item(body, at)
                except StepFailed:
                    self._lost.add(place.key)
                    await self._sub_flows.stop(place.key)
                    raise

        await self._all([lane(first) for first in range(min(lanes, len(items)))])
        return await self._kept({"results": results, "count": len(items)}, place)

    async def _item(self, body: Task, at: Place) -> Any:
        try:
            return (await self._done(body, at)).outputs
        except StepFailed:
            if body.on_error == "fail":
                raise
            return await self._fallback(body, at) if body.on_error == "default" else None

    async def _sub(self, task: Task, place: Place) -> TaskDone:
        """The sub-flow is a job of its own. With each attempt of this one it is looked at anew: it may have failed."""
        given = await self._now(task, place)
        child = Child(
            task=place.key, workflow_id=given["workflow_id"], version=given["version"], inputs=given["input"] or {}
        )
        return await self._sub_flows.result(
            child, may_fail=place.may_fail, is_wanted=lambda: self._is_wanted(place.key.partition("[")[0])
        )

    def _is_wanted(self, name: str) -> bool:
        """Whether a task, or another item of a loop, is worth beginning, and going on with."""
        return not self._failed and name not in self._lost

    async def _kept(self, outputs: dict[str, Any], place: Place) -> TaskDone:
        done: TaskDone = await self._run.step(keep, Outputs(outputs=outputs), key=place.key)
        return done

    async def _refuse(self, place: Place, code: str, message: str) -> NoReturn:
        """The task fails, as if it had been tried."""
        own = replace(refuse_task, may_fail=place.may_fail)
        await self._run.step(own, Refused(code=code, message=message), key=place.key)
        raise AssertionError("the step has not failed")

    # ---- values

    async def _now(self, task: Task, place: Place, but: str | None = None) -> dict[str, Any]:
        """The checked inputs of a task that has no step in which large values could be read."""
        inputs = {name: value for name, value in task.inputs.items() if name != but}
        given = await self._resolved(compile_value(inputs), place)
        large = [name for name, value in given.items() if is_spilled(value)]
        if large:
            await self._refuse(place, "too_large", f"The input {large[0]} is too large for {task.type}.")
        try:
            return checked_inputs(self._types[task.type], given | ({but: {}} if but else {}))
        except TaskError as error:
            await self._refuse(place, error.code, error.message)

    async def _resolved(self, template: Template, place: Place) -> Any:
        try:
            return template.resolve(self._values(template.references, place))
        except ReferenceFault as fault:
            await self._refuse(place, "bad_reference", fault.told(self._notation))

    def _values(self, references: Iterable[Reference], place: Place) -> dict[str, Any]:
        """What the references name, and nothing else: it travels with the step."""
        values: dict[str, Any] = {"input": {}, "refs": {}, **place.item}
        for reference in references:
            if reference.root == "input":
                names = reference.path[:1] or self._inputs
                values["input"] |= {name: self._inputs[name] for name in names if name in self._inputs}
            elif reference.task is not None:
                found = values["refs"].setdefault(reference.task, {"output": {}})["output"]
                given = self._given(reference.task)
                found |= {name: given.get(name) for name in reference.path[:1] or given}
        return values

    def _given(self, name: str) -> dict[str, Any]:
        """What a task gave: nothing of each, when it failed or was skipped."""
        nothing = {one.name: None for one in self._types[self._tasks[name].type].outputs}
        done = self._ended.get(name)
        return nothing | (done.outputs if done is not None else {})


def policy(task: Task, kind: TaskType) -> RetryPolicy:
    """How often, and for how long, a task is tried."""
    asked = task.retry or Retry(attempts=kind.attempts)
    return RetryPolicy(
        attempts=asked.attempts, delay=asked.delay, multiplier=asked.multiplier, max_delay=asked.max_delay,
        timeout=task.timeout or kind.timeout, jitter=asked.jitter,
    )  # fmt: skip
