"""The engine of all wizards: takes a step, keeps the draft, triggers the job. It knows the contract, and no type.

A step is one transaction. A fault of format or of a reference stores nothing; a refused trigger keeps the fields, and the
refusal carries the whole workflow.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from services.app import references
from services.app.audit import service as audit
from services.app.context import AppContext
from services.app.db_problems import problem_of_constraint
from services.app.identity.caller import Caller
from services.app.wizards import answers, files, repository
from services.app.wizards.contract import Visit, Wizard, project_of
from services.app.wizards.forms import StepBody
from services.app.wizards.registry import WIZARDS
from services.app.wizards.tables import WorkflowRow
from shared.errors import Fault, Problem
from shared.http.problems import problem_of
from shared.jobs.ledger import FINAL

OPEN_DRAFTS = 100


@dataclass(slots=True)
class _Draft:
    workflow: WorkflowRow
    job_state: str | None
    fresh: bool

    @property
    def running(self) -> bool:
        return self.job_state is not None and self.job_state not in FINAL


async def take_step(
    context: AppContext, caller: Caller, wizard: Wizard, body: StepBody, revision: int | None = None
) -> dict[str, Any]:
    """The whole answer to a step, committed. Raises the problems that api rules name for a step and a trigger."""
    caller.require(wizard.role)
    async with context.database.transaction() as session:
        visit = Visit(context, session, caller)
        draft = await _open(visit, wizard, body, revision)
        answer, refusal = await _apply(visit, wizard, draft, body)
    if refusal is not None:
        refusal.members["workflow"] = answer
        raise refusal
    return answer


async def _open(visit: Visit, wizard: Wizard, body: StepBody, revision: int | None) -> _Draft:
    if body.workflow_id is None:
        if await repository.open_drafts(visit.session, visit.caller.user_id) >= OPEN_DRAFTS:
            raise Problem("too_many_drafts", f"You have {OPEN_DRAFTS} open drafts; finish or delete some first.")
        now = datetime.now(UTC)
        workflow = WorkflowRow(
            id=uuid4(), type=wizard.type, owner_id=visit.caller.user_id, status="in_progress", current_step=0,
            total_steps=body.total_steps, fields={}, field_steps={}, files={}, revision=0, created_at=now, updated_at=now,
        )  # fmt: skip
        return _Draft(workflow, None, fresh=True)
    found = await repository.lock(visit.session, body.workflow_id)
    if found is None:
        raise Problem("not_found", "There is no such workflow.", param="workflow_id")
    workflow, job_state = found
    check_may_change(visit.caller, workflow)
    if workflow.type != wizard.type:
        raise Problem("wrong_wizard", f"This workflow is a {workflow.type}, not a {wizard.type}.", param="workflow_id")
    if revision is not None and revision != workflow.revision:
        raise Problem("revision_mismatch", f"The workflow is at revision {workflow.revision}.")
    if body.step_number > workflow.total_steps:
        message = f"Must not be above the total of {workflow.total_steps}."
        raise Problem("validation_failed", message, faults=[Fault("step_number", "out_of_range", message)])
    return _Draft(workflow, job_state, fresh=False)


def check_may_read(caller: Caller, workflow: WorkflowRow) -> None:
    if workflow.owner_id != caller.user_id and not caller.is_at_least("operator"):
        raise Problem("not_found", "There is no such workflow.", param="workflow_id")


def check_may_change(caller: Caller, workflow: WorkflowRow) -> None:
    check_may_read(caller, workflow)
    if workflow.owner_id != caller.user_id and caller.role != "admin":
        raise Problem("not_owner", "This workflow belongs to someone else.", param="workflow_id")


async def _apply(visit: Visit, wizard: Wizard, draft: _Draft, body: StepBody) -> tuple[dict[str, Any], Problem | None]:
    workflow = draft.workflow
    changed = _changed(workflow, body)
    if changed and (draft.running or workflow.status in ("completed", "cancelled")):
        code, words = ("workflow_locked", "its job runs") if draft.running else ("workflow_finished", "it has ended")
        raise Problem(code, f"The workflow cannot be changed: {words}.", members={"job_id": _text(workflow.job_id)})
    merged = {**workflow.fields, **{name: body.fields[name] for name in body.fields if name in changed}}
    found = await _check(visit, wizard, merged, changed, body)
    may_trigger = body.trigger and workflow.status in ("in_progress", "failed") and not draft.running
    repeat = not changed and (workflow.status == "failed" or not may_trigger)
    stored = False
    if not (body.trigger and repeat) or draft.fresh:
        if changed and not body.trigger:
            await wizard.check_names(visit, merged)
        stored = await _store(visit, wizard, draft, body, changed, merged)
    if not may_trigger or (repeat and not draft.fresh):
        message = _message(workflow, body, stored)
        return await _answer(visit, wizard, workflow, message, found, emit=stored), None
    return await _trigger(visit, wizard, workflow, found)


def _changed(workflow: WorkflowRow, body: StepBody) -> set[str]:
    changed = {name for name, value in body.fields.items() if workflow.fields.get(name) != value}
    changed |= {name for name, file in body.files.items() if workflow.files.get(name, {}).get("sha256") != file.sha256}
    return changed


async def _check(
    visit: Visit, wizard: Wizard, merged: dict[str, Any], changed: set[str], body: StepBody
) -> answers.Found:
    """Everything that can be known at the step. Raises what is wrong; returns what the ids name."""
    found = await references.find(visit.session, references.named_in(merged, wizard.references))
    faults = references.faults(visit.caller, merged, wizard.references, found, sorted(changed))
    if not faults and changed:
        faults = await wizard.check(visit, merged, changed)
    if faults:
        placed = [Fault(fault.param, fault.code, fault.message, wizard.step_of(fault.param)) for fault in faults]
        if all(fault.code == "reference_not_found" for fault in placed):
            raise Problem("reference_not_found", placed[0].message, faults=placed)
        raise problem_of(placed)
    for name in changed & body.files.keys():
        await wizard.check_file(visit, name, body.files[name].content, merged)
    return found


async def _store(
    visit: Visit, wizard: Wizard, draft: _Draft, body: StepBody, changed: set[str], merged: dict[str, Any]
) -> bool:
    """Write the draft; returns whether anything is new."""
    workflow = draft.workflow
    step = max(workflow.current_step, body.step_number)
    if not (changed or draft.fresh or step != workflow.current_step):
        return False
    if workflow.status == "failed" and changed:
        workflow.status, workflow.reason, workflow.ended_at = "in_progress", None, None
        await wizard.reopen(visit, workflow)
    if workflow.status == "in_progress" or draft.fresh:
        workflow.current_step = step
    workflow.fields = {**merged, **{name: value for name, value in body.fields.items() if name in changed}}
    workflow.field_steps = {
        **workflow.field_steps,
        **dict.fromkeys(sorted(changed | body.fields.keys()), body.step_number),
    }
    sealed = files.seal(visit.context.keyring, workflow.id, body.files, changed & body.files.keys())
    workflow.files = {**workflow.files, **sealed}
    workflow.project_id = project_of(workflow.fields)
    workflow.revision += 1
    workflow.updated_at = datetime.now(UTC)
    if draft.fresh:
        await repository.insert(visit.session, workflow)
    action = "workflow.begin" if draft.fresh else "workflow.step"
    await audit.record(
        visit.session, visit.caller, action, "workflow", workflow.id, type=wizard.type, step=body.step_number
    )
    return True


async def _trigger(
    visit: Visit, wizard: Wizard, workflow: WorkflowRow, found: answers.Found
) -> tuple[dict[str, Any], Problem | None]:
    """Start the job, or say why not; a refusal takes back only what the trigger itself did."""
    refusal = await _missing(visit, wizard, workflow)
    if refusal is None:
        try:
            async with visit.session.begin_nested():
                request = await wizard.start(visit, workflow)
                await visit.context.ledger.submit(visit.session, request)
        except Problem as problem:
            refusal = problem
        except IntegrityError as error:
            refusal = problem_of_constraint(error)
        else:
            workflow.job_id = request.id
            workflow.status, workflow.reason, workflow.result = "in_progress", None, None
            workflow.revision += 1
            await visit.session.flush()
            if request.finished is not None:
                await visit.context.ledger.complete(visit.session, request)
            kind = request.definition.kind
            await audit.record(
                visit.session, visit.caller, "workflow.trigger", "workflow", workflow.id, job=request.id, kind=kind
            )
    message = "The job has been started." if refusal is None else refusal.detail
    return await _answer(visit, wizard, workflow, message, found, emit=True), refusal


async def _missing(visit: Visit, wizard: Wizard, workflow: WorkflowRow) -> Problem | None:
    variant = await wizard.variant(visit, workflow.fields)
    missing = await answers.missing_now(visit, wizard, workflow, variant)
    if not missing:
        return None
    faults = [Fault(one.field, one.code, one.message, wizard.step_of(one.field, variant)) for one in missing]
    names = ", ".join(one.field for one in missing)
    return Problem("missing_fields", f"Before this can start: {names}.", faults=faults)


async def _answer(
    visit: Visit, wizard: Wizard, workflow: WorkflowRow, message: str, found: answers.Found, *, emit: bool
) -> dict[str, Any]:
    answer = await answers.render(visit, wizard, workflow, message, found=found)
    if emit:
        await visit.session.flush()
        await visit.context.ledger.emit_topic(visit.session, workflow.id, "workflow", answer)
    return answer


def _message(workflow: WorkflowRow, body: StepBody, stored: bool) -> str:
    if workflow.status == "in_progress" and workflow.job_id is not None and not stored:
        return "The job has been started already."
    if workflow.status != "in_progress":
        return f"The workflow is {workflow.status}."
    return f"Step {body.step_number} of {workflow.total_steps} is saved."


def _text(value: UUID | None) -> str | None:
    return None if value is None else str(value)


# ---- workflows by their id


async def render(visit: Visit, workflow: WorkflowRow) -> dict[str, Any]:
    return await answers.render(visit, WIZARDS[workflow.type], workflow, _standing(workflow))


async def is_drained(session: AsyncSession, workflow_id: UUID, after: int) -> bool:
    """Whether a reader who has seen the event `after` has seen all."""
    newest = await session.scalar(text("SELECT seq FROM jobs.topic WHERE id = :id"), {"id": workflow_id})
    return newest is None or after >= newest


async def show(visit: Visit, workflow_id: UUID) -> dict[str, Any]:
    workflow = await repository.get(visit.session, workflow_id)
    if workflow is None:
        raise Problem("not_found", "There is no such workflow.")
    check_may_read(visit.caller, workflow)
    return await render(visit, workflow)


def _standing(workflow: WorkflowRow) -> str:
    if workflow.status == "in_progress":
        words = "the job runs" if workflow.job_id else "a draft"
        return f"Step {workflow.current_step} of {workflow.total_steps}: {words}."
    return f"The workflow is {workflow.status}."


async def cancel(visit: Visit, workflow_id: UUID) -> dict[str, Any]:
    """Cancel a draft, or the job of a triggered workflow; may be repeated."""
    workflow = await _readable(visit, workflow_id)
    if workflow.job_id is not None and workflow.status == "in_progress":
        await visit.context.ledger.cancel(
            visit.session, workflow.job_id
        )  # the job before the workflow: the order of locks
    elif workflow.status == "in_progress":
        locked = await repository.lock(visit.session, workflow_id)
        if locked is not None and locked[0].status == "in_progress":
            if locked[0].job_id is not None:
                raise Problem("conflict", "The workflow has been triggered just now; cancel it again.")
            await _end_draft(visit, locked[0])
    elif workflow.status != "cancelled":
        raise Problem("workflow_finished", f"The workflow has already ended: {workflow.status}.")
    await audit.record(visit.session, visit.caller, "workflow.cancel", "workflow", workflow_id)
    return await show(visit, workflow_id)


async def _end_draft(visit: Visit, workflow: WorkflowRow) -> None:
    workflow.status, workflow.ended_at, workflow.files = "cancelled", datetime.now(UTC), {}
    workflow.revision += 1
    await visit.session.flush()
    wizard = WIZARDS[workflow.type]
    answer = await answers.render(visit, wizard, workflow, "The workflow is cancelled.")
    await visit.context.ledger.emit_topic(visit.session, workflow.id, "workflow", answer)
    await visit.context.ledger.emit_topic(visit.session, workflow.id, "end", {"status": "cancelled"})


async def retry(visit: Visit, workflow_id: UUID) -> dict[str, Any]:
    """Run a failed workflow's job again from its failed step."""
    workflow = await _readable(visit, workflow_id)
    if workflow.status != "failed" or workflow.job_id is None:
        raise Problem("not_retryable", f"Only a failed workflow can be retried; this one is {workflow.status}.")
    try:
        async with visit.session.begin_nested():
            await visit.context.ledger.retry(visit.session, workflow.job_id)
            await visit.session.flush()
    except IntegrityError as error:
        raise problem_of_constraint(error) from error
    await audit.record(visit.session, visit.caller, "workflow.retry", "workflow", workflow_id)
    return await show(visit, workflow_id)


async def delete(visit: Visit, workflow_id: UUID) -> None:
    """Delete a draft; what has been triggered stays as history."""
    workflow = await _readable(visit, workflow_id)
    locked = await repository.lock(visit.session, workflow_id)
    if workflow.job_id is not None or (locked is not None and locked[0].job_id is not None):
        raise Problem(
            "not_a_draft", "Only a draft can be deleted; this workflow has been triggered. Cancel it instead."
        )
    await visit.session.delete(workflow)
    await audit.record(visit.session, visit.caller, "workflow.delete", "workflow", workflow_id)


async def _readable(visit: Visit, workflow_id: UUID) -> WorkflowRow:
    workflow = await repository.get(visit.session, workflow_id)
    if workflow is None:
        raise Problem("not_found", "There is no such workflow.")
    visit.caller.require("member")
    check_may_change(visit.caller, workflow)
    return workflow


async def expire(context: AppContext, idle_days: int) -> int:
    """Cancel drafts that nobody has touched for so many days; returns how many."""
    async with context.database.transaction() as session:
        expired = await repository.expire(session, idle_days)
        for workflow_id in expired:
            await context.ledger.emit_topic(session, workflow_id, "end", {"status": "cancelled", "reason": "expired"})
    return len(expired)
