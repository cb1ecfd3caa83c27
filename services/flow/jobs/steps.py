"""The steps of a flow's execution: one task, a skipped task, a started sub-flow. See `run_flow` for what comes when."""

from typing import Any

from pydantic import BaseModel

from services.flow.checks import checked_inputs, checked_outputs
from services.flow.known import task_types
from services.flow.values import restored, spill
from shared.contracts.flows import ChildEnd, ChildStarted, TaskDone
from shared.flows.dialects import DIALECTS
from shared.flows.dialects.words import DialectName
from shared.flows.references import ReferenceFault, compile_value
from shared.jobs.declare import ONCE, RetryPolicy, step
from shared.jobs.outcomes import Permanent, Retry
from shared.jobs.run import Step
from stepway.tasks import TaskError

PATIENT = RetryPolicy(attempts=5, delay=0.5, max_delay=10)


class TaskOrder(BaseModel):
    """A task as its step gets it: its inputs with references, and the values that these name.

    Faults are told in the words of `dialect`.
    """

    type: str
    inputs: dict[str, Any]
    values: dict[str, Any]
    dialect: DialectName = "refs"


class Skipped(BaseModel):
    reason: str


class Refused(BaseModel):
    code: str
    message: str


class Outputs(BaseModel):
    outputs: dict[str, Any]


class Child(BaseModel):
    """A sub-flow that is to be started for a task."""

    task: str
    workflow_id: str
    version: int | None
    inputs: dict[str, Any]


@step("Run a task", key="task", retry=ONCE)
async def run_task(step: Step, order: TaskOrder) -> TaskDone:
    kind = task_types()[order.type]
    context = step.tools.context(step, order.type)
    try:
        values = await restored(order.values, context.read)
        inputs = checked_inputs(kind, compile_value(order.inputs).resolve(values))
        assert kind.run is not None
        outputs = checked_outputs(kind, await kind.run(context, inputs))
        return TaskDone(outputs=await spill(outputs, context))
    except ReferenceFault as fault:
        raise Permanent("bad_reference", fault.told(DIALECTS[order.dialect].notation)) from None
    except TaskError as error:
        raise _outcome(error) from None


def _outcome(error: TaskError) -> Retry | Permanent:
    if error.retryable:
        return Retry(error.code, error.message, after=error.after)
    return Permanent(error.code, error.message)


@step("Pass over a task", key="skip", retry=PATIENT)
async def skip_task(step: Step, skipped: Skipped) -> TaskDone:
    return TaskDone(status="skipped", reason=skipped.reason)


@step("Refuse a task", key="refuse", retry=ONCE)
async def refuse_task(step: Step, refused: Refused) -> TaskDone:
    """For a task that cannot even be begun with what it is given."""
    raise Permanent(refused.code, refused.message)


@step("Keep what a task gives", key="keep", retry=PATIENT)
async def keep(step: Step, given: Outputs) -> TaskDone:
    """Of a task that is more than one step, and of the whole flow."""
    try:
        return TaskDone(outputs=await spill(given.outputs, step.tools.context(step, "")))
    except TaskError as error:
        raise _outcome(error) from None


async def _cancel_child(step: Step, child: Child, result: ChildStarted | None) -> None:
    await step.tools.flows.cancel_child(step.job_id, child.task)


@step("Start a sub-flow", key="start", retry=PATIENT, undo=_cancel_child)
async def start_child(step: Step, child: Child) -> ChildStarted:
    started: ChildStarted = await step.tools.flows.start_child(
        step.job_id, child.task, child.workflow_id, child.version, child.inputs
    )
    return started


@step("Stop a sub-flow", key="stop", retry=PATIENT, weight=0.0)
async def stop_child(step: Step, child: Child) -> None:
    """Of an execution that has failed meanwhile."""
    await step.tools.flows.cancel_child(step.job_id, child.task)


@step("Take what a sub-flow gives", key="finish", retry=PATIENT)
async def finish_child(step: Step, child: Child) -> TaskDone:
    """Looks at the sub-flow as it is now: it may have been run again since it failed."""
    end: ChildEnd = await step.tools.flows.child_end(step.job_id, child.task)
    if end.status != "COMPLETED":
        why = end.error["message"] if end.error is not None else ""
        code = "sub_flow_cancelled" if end.status == "CANCELLED" else "sub_flow_failed"
        raise Permanent(code, f"The sub-flow {end.execution_id} has ended as {end.status}. {why}".strip())
    outputs = {"output": end.outputs, "execution_id": end.execution_id}
    return TaskDone(outputs=await spill(outputs, step.tools.context(step, "")))
