"""One step of a wizard: kept in its draft, and with a trigger the job is started. It knows the contract, and no type.

A step is one transaction. What may be done depends on where the workflow stands:

| standing | the same data again | other data | a trigger |
|---|---|---|---|
| draft | nothing to do | checked, then stored | starts the job, or is refused; the fields stay stored |
| its job runs | the present state | 409 `workflow_locked` | the present state |
| failed | the present state | stored: a draft again | the present state; with other data as in a draft |
| completed, cancelled | the present state | 409 `workflow_finished` | the present state |

A fault in what was sent stores nothing. A refused trigger carries the whole workflow.
"""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.exc import IntegrityError

from services.app import references
from services.app.audit import service as audit
from services.app.context import AppContext
from services.app.db_problems import problem_of_constraint
from services.app.identity.caller import Caller
from services.app.references import Found
from services.app.resources import Revisions, check_revision
from services.app.wizards import answers, files, repository
from services.app.wizards.access import check_may_change
from services.app.wizards.contract import Fields, Variant, Visit, Wizard, project_of
from services.app.wizards.forms import StepBody
from services.app.wizards.repository import Locked, Standing
from services.app.wizards.tables import WorkflowRow
from shared.error_codes import CODES
from shared.errors import Fault, Problem
from shared.http.problems import problem_of

OPEN_DRAFTS = 100
_LOCKED = {
    Standing.RUNNING: ("workflow_locked", "its job runs"),
    Standing.COMPLETED: ("workflow_finished", "it is completed"),
    Standing.CANCELLED: ("workflow_finished", "it is cancelled"),
}


async def take_step(
    context: AppContext, caller: Caller, wizard: Wizard, body: StepBody, revision: Revisions | None = None
) -> dict[str, Any]:
    """The whole answer to a step, committed. `revision`: the one that the caller has read."""
    caller.require(wizard.role)
    if wizard.role == "operator":
        caller.require_unbound()
    async with context.database.transaction() as session:
        visit = Visit(context, session, caller)
        if body.workflow_id is None:
            draft = await _new_draft(visit, wizard, body)
            answer, refusal = await _edit(visit, wizard, draft, body, _changed(draft, body))
        else:
            locked = await _locked(visit, wizard, body, revision)
            answer, refusal = await _go_on(visit, wizard, locked, body)
    if refusal is not None:
        refusal.members["workflow"] = answer
        raise refusal
    return answer


# ---- which workflow


async def _new_draft(visit: Visit, wizard: Wizard, body: StepBody) -> WorkflowRow:
    owner = visit.caller.user_id
    if await repository.open_drafts(visit.session, owner, OPEN_DRAFTS) >= OPEN_DRAFTS:
        raise Problem("too_many_drafts", f"You have {OPEN_DRAFTS} open drafts; finish or delete some first.")
    now = datetime.now(UTC)
    return WorkflowRow(
        id=uuid4(), type=wizard.type, owner_id=owner, status="in_progress", current_step=0, total_steps=body.total_steps,
        fields={}, field_steps={}, files={}, revision=0, created_at=now, updated_at=now,
    )  # fmt: skip


async def _locked(visit: Visit, wizard: Wizard, body: StepBody, revision: Revisions | None) -> Locked:
    assert body.workflow_id is not None
    locked = await repository.lock(visit.session, body.workflow_id)
    if locked is None:
        raise Problem("not_found", "There is no such workflow.", param="workflow_id")
    workflow = locked.workflow
    check_may_change(visit.caller, workflow, param="workflow_id")
    if workflow.type != wizard.type:
        raise Problem("wrong_wizard", f"This workflow is a {workflow.type}, not a {wizard.type}.", param="workflow_id")
    check_revision(workflow, revision)
    if body.step_number > workflow.total_steps:
        raise problem_of([Fault("step_number", "out_of_range", f"must be at most {workflow.total_steps}")])
    return locked


# ---- what is done with it


Outcome = tuple[dict[str, Any], Problem | None]


async def _go_on(visit: Visit, wizard: Wizard, locked: Locked, body: StepBody) -> Outcome:
    workflow, standing = locked.workflow, locked.standing
    changed = _changed(workflow, body)
    if changed and standing in _LOCKED:
        code, why = _LOCKED[standing]
        job_id = str(workflow.job_id) if workflow.job_id else None
        raise Problem(code, f"The workflow cannot be changed: {why}.", members={"job_id": job_id})
    if standing is Standing.DRAFT or changed:
        return await _edit(visit, wizard, workflow, body, changed)
    if standing is Standing.RUNNING and _advance(workflow, body):
        await _stored(visit, wizard, workflow, body)
        return await _emitted(visit, workflow, None), None
    return await answers.render(visit.context, visit.session, workflow, visit.caller), None


async def _edit(visit: Visit, wizard: Wizard, workflow: WorkflowRow, body: StepBody, changed: set[str]) -> Outcome:
    """A draft, or a failed workflow that becomes one again."""
    fields = {**workflow.fields, **body.fields}
    found = await _check(visit, wizard, fields, changed, body)
    stored = _write(visit, wizard, workflow, body, changed, found)
    if stored:
        await _stored(visit, wizard, workflow, body)
    refusal = await _trigger(visit, wizard, workflow, found) if body.trigger else None
    if stored and (refusal is not None or not body.trigger):
        return await _emitted(visit, workflow, found), refusal
    return await answers.render(visit.context, visit.session, workflow, visit.caller, found), refusal


async def _check_names(visit: Visit, wizard: Wizard, fields: dict[str, Any], changed: set[str]) -> None:
    """`name_taken` with the step of the name, as every fault of a field has it."""
    try:
        await wizard.check_names(visit, fields, changed)
    except Problem as problem:
        step = wizard.step_of(problem.param, await wizard.variant(visit, fields))
        problem.faults = problem.faults or [Fault(problem.param, problem.code, problem.detail, step)]
        raise


def _changed(workflow: WorkflowRow, body: StepBody) -> set[str]:
    """The fields that would get another value; absent and null are the same."""
    changed = {name for name, value in body.fields.items() if workflow.fields.get(name) != value}
    for name, file in body.files.items():
        if workflow.files.get(name, {}).get("sha256") != (file.sha256 if file else None):
            changed.add(name)
    return changed


async def _check(visit: Visit, wizard: Wizard, fields: dict[str, Any], changed: set[str], body: StepBody) -> Found:
    """Everything that can be known of the changed fields at the step; what the ids name. Raises what is wrong."""
    found = await references.find(visit.session, references.named_in(fields, wizard.references))
    if not changed:
        return found
    faults = references.faults(visit.caller, fields, wizard.references, found, sorted(changed))
    if not faults:
        faults = await wizard.check(visit, fields, changed)
    if faults:
        variant = await wizard.variant(visit, fields)
        raise _refusal([Fault(one.param, one.code, one.message, wizard.step_of(one.param, variant)) for one in faults])
    for name in sorted(changed & body.files.keys()):
        file = body.files[name]
        if file is not None:
            await wizard.check_file(visit, name, file.content, fields)
    if not body.trigger:  # a trigger saves the fields first, and finds it in `start`
        await _check_names(visit, wizard, fields, changed)
    return found


def _refusal(faults: list[Fault]) -> Problem:
    """One code for all where they share one that is an answer's own, such as `reference_not_found`."""
    codes = {fault.code for fault in faults}
    if len(codes) == 1 and (code := codes.pop()) in CODES:
        return Problem(code, faults[0].message, faults=faults)
    return problem_of(faults)


def _write(
    visit: Visit, wizard: Wizard, workflow: WorkflowRow, body: StepBody, changed: set[str], found: Found
) -> bool:
    """Take over what was sent; whether anything is new. A null that was never a value is kept too: it was sent."""
    new = changed | {name for name in body.fields if name not in workflow.fields}
    if not _advance(workflow, body) and not new:
        return False
    if changed:
        workflow.status, workflow.reason, workflow.ended_at = "in_progress", None, None
    workflow.fields = {**workflow.fields, **body.fields}
    workflow.field_steps = {**workflow.field_steps, **dict.fromkeys(sorted(new), body.step_number)}
    sent = {name: file for name, file in body.files.items() if name in changed}
    kept = {name: file for name, file in workflow.files.items() if name not in sent}
    workflow.files = {**kept, **files.seal(visit.context.keyring, workflow.id, sent)}
    workflow.project_id = _project_of(wizard, workflow.fields, found)
    return True


def _project_of(wizard: Wizard, fields: Fields, found: Found) -> UUID | None:
    """The project that is named, or that of what is named where a wizard asks for no project."""
    if "project_id" in wizard.references:
        return project_of(fields)
    named = (references.named(found, kind, fields.get(name)) for name, kind in wizard.references.items())
    return next((one.project_id for one in named if one is not None), None)


def _advance(workflow: WorkflowRow, body: StepBody) -> bool:
    if body.step_number <= workflow.current_step:
        return False
    workflow.current_step = body.step_number
    return True


async def _stored(visit: Visit, wizard: Wizard, workflow: WorkflowRow, body: StepBody) -> None:
    is_new = workflow.revision == 0
    workflow.revision += 1
    workflow.updated_at = datetime.now(UTC)
    if is_new:
        await repository.insert(visit.session, workflow)
    else:
        await visit.session.flush()
    action = "workflow.begin" if is_new else "workflow.step"
    await audit.record(
        visit.session, visit.caller, action, "workflow", workflow.id, type=wizard.type, step=body.step_number
    )


async def _emitted(visit: Visit, workflow: WorkflowRow, found: Found | None) -> dict[str, Any]:
    """The answer, which is the event too."""
    answer = await answers.render(visit.context, visit.session, workflow, visit.caller, found)
    await visit.context.ledger.emit_topic(visit.session, workflow.id, "workflow", answer)
    return answer


# ---- the trigger


async def _trigger(visit: Visit, wizard: Wizard, workflow: WorkflowRow, found: Found) -> Problem | None:
    """Start the job, or say why not; a refusal takes back only what the trigger itself did."""
    variant = await wizard.variant(visit, workflow.fields)
    refusal = await _not_ready(visit, wizard, workflow, variant, found)
    if refusal is not None:
        return refusal
    ledger = visit.context.ledger
    try:
        async with visit.session.begin_nested():
            request = await wizard.start(visit, workflow)
            await ledger.submit(visit.session, request)
    except Problem as problem:
        return _placed(problem, wizard, variant)
    except IntegrityError as error:
        return _placed(problem_of_constraint(error), wizard, variant)
    workflow.job_id, workflow.result = request.id, None
    workflow.status, workflow.reason, workflow.ended_at = "in_progress", None, None
    workflow.revision += 1
    workflow.updated_at = datetime.now(UTC)
    await visit.session.flush()
    await audit.record(
        visit.session, visit.caller, "workflow.trigger", "workflow", workflow.id, job=request.id,
        kind=request.definition.kind,
    )  # fmt: skip
    await _emitted(visit, workflow, found)
    if request.finished is not None:
        await ledger.complete(visit.session, request)
    return None


async def _not_ready(
    visit: Visit, wizard: Wizard, workflow: WorkflowRow, variant: Variant, found: Found
) -> Problem | None:
    missing = await answers.missing_of(visit, wizard, workflow, variant, found)
    if not missing:
        return None
    faults = [Fault(one.field, one.code, one.message, wizard.step_of(one.field, variant)) for one in missing]
    if all(one.code == "reference_not_found" for one in missing):
        return Problem("reference_not_found", missing[0].message, faults=faults)
    return Problem(
        "missing_fields", f"Before this can start: {', '.join(one.field for one in missing)}.", faults=faults
    )


def _placed(problem: Problem, wizard: Wizard, variant: Variant) -> Problem:
    """The same with the step of its field, where the draft's variant has it."""
    if problem.param is not None and not problem.faults:
        step = wizard.step_of(problem.param, variant)
        problem.faults = [Fault(problem.param, problem.code, problem.detail, step)]
    return problem
