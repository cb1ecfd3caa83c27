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

from contextlib import nullcontext
from dataclasses import replace
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
from services.app.wizards import answers, checks, files, repository
from services.app.wizards.access import check_may_change
from services.app.wizards.checks import Facts
from services.app.wizards.contract import Fields, Visit, Wizard, project_of
from services.app.wizards.forms import StepBody, server_field, unknown_field
from services.app.wizards.repository import Locked, Standing
from services.app.wizards.tables import WorkflowRow
from shared import log
from shared.errors import Fault, Problem
from shared.telemetry import traces

OPEN_DRAFTS = 100
LOCKED = {
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
    told = await _told(context, caller, wizard, body) if body.trigger and wizard.asks_ahead else None
    async with context.triggers if body.trigger else nullcontext(), context.database.transaction() as session:
        visit = Visit(context, session, caller, told)
        locked = await _subject(visit, wizard, body, revision)
        workflow = locked.workflow if locked is not None else _new_draft(visit, wizard, body)
        traces.note(workflow=workflow.id)
        with log.bound(workflow=str(workflow.id)):
            if locked is not None:
                answer, refusal = await _go_on(visit, wizard, locked, body)
            else:
                body = await _without_echo(visit, wizard, workflow, body)
                answer, refusal = await _edit(visit, wizard, workflow, body)
    if refusal is not None:
        refusal.members["workflow"] = answer
        raise refusal
    return answer


async def _told(context: AppContext, caller: Caller, wizard: Wizard, body: StepBody) -> object:
    """What the wizard asks others before the first trigger of a workflow. What is wrong with the step is not said here."""
    kept: Fields = {}
    content: dict[str, bytes] = {}
    if body.faults:
        return None
    if body.workflow_id is not None:
        async with context.database.transaction() as session:
            workflow = await repository.get(session, body.workflow_id)
        if workflow is None or workflow.type != wizard.type or not _is_untried(caller, workflow):
            return None
        kept, content = workflow.fields, files.open_files(context.keyring, workflow)
    content = {name: one for name, one in content.items() if name not in body.files}
    content |= {name: file.content for name, file in body.files.items() if file is not None}
    return await wizard.ask_ahead(context, {**kept, **body.fields}, content)


def _is_untried(caller: Caller, workflow: WorkflowRow) -> bool:
    """Whether it is a draft of which no job was ever made, and the caller's to change."""
    try:
        check_may_change(caller, workflow)
    except Problem:
        return False
    return workflow.job_id is None and workflow.status == "in_progress"


# ---- which workflow


def _new_draft(visit: Visit, wizard: Wizard, body: StepBody) -> WorkflowRow:
    now = datetime.now(UTC)
    return WorkflowRow(
        id=uuid4(), type=wizard.type, owner_id=visit.caller.user_id, status="in_progress", current_step=0,
        total_steps=body.total_steps, fields={}, field_steps={}, files={}, revision=0, created_at=now, updated_at=now,
    )  # fmt: skip


async def _subject(visit: Visit, wizard: Wizard, body: StepBody, revision: Revisions | None) -> Locked | None:
    """The workflow that the body names, None to begin one. Who names none rightly hears of their control fields first."""
    if body.workflow_id is None:
        return None
    try:
        return await _locked(visit, wizard, body, revision)
    except Problem:
        if body.is_clear:
            raise
        return None


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
    return locked


async def _without_echo(visit: Visit, wizard: Wizard, workflow: WorkflowRow, body: StepBody) -> StepBody:
    """What an id names, or a file is, may come back as it was answered. Whatever else no step takes is a fault."""
    faults = list(body.faults)
    if workflow.revision and body.step_number > workflow.total_steps:
        faults.append(Fault("step_number", "out_of_range", f"must be at most {workflow.total_steps}"))
    if body.unknown:
        found = await references.find(visit.session, references.named_in(workflow.fields, wizard.references))
        shown = answers.fields_of(visit, wizard, workflow, found)
        computed = await wizard.computed(visit, workflow.fields)
        faults += [
            _refused(wizard, name, computed)
            for name, value in body.unknown.items()
            if name not in shown or shown[name] != value
        ]
    return replace(body, unknown={}, faults=tuple(faults))


def _refused(wizard: Wizard, name: str, computed: Fields) -> Fault:
    if name in wizard.files:
        return Fault(name, "file_expected", "must be sent as a file")
    return server_field(name) if name in computed else unknown_field(name)


# ---- what is done with it


Outcome = tuple[dict[str, Any], Problem | None]


async def _go_on(visit: Visit, wizard: Wizard, locked: Locked, body: StepBody) -> Outcome:
    workflow, standing = locked.workflow, locked.standing
    body = await _without_echo(visit, wizard, workflow, body)
    changed = _changed(workflow, body)
    if body.faults or standing is Standing.DRAFT or (changed and standing not in LOCKED):
        return await _edit(visit, wizard, workflow, body)
    if standing is Standing.RUNNING and not changed and _advance(workflow, body):
        await _stored(visit, wizard, workflow, body)
        return await _emitted(visit, workflow, body, None), None
    answer = await answers.render(visit.context, visit.session, workflow, visit.caller, step=body.step_number)
    if not changed:
        return answer, None
    code, why = LOCKED[standing]
    job_id = str(workflow.job_id) if workflow.job_id else None
    return answer, Problem(code, f"The workflow cannot be changed: {why}.", members={"job_id": job_id})


async def _edit(visit: Visit, wizard: Wizard, workflow: WorkflowRow, body: StepBody) -> Outcome:
    """A draft, or a failed workflow that becomes one again. Raises the faults of the body."""
    changed = _changed(workflow, body)
    named = references.named_in({**workflow.fields, **body.fields}, wizard.references)
    found = await references.find(visit.session, named)
    facts = await checks.check_step(visit, wizard, workflow, body, changed, found)
    stored = _write(visit, wizard, workflow, body, changed, found, facts)
    if stored:
        await _stored(visit, wizard, workflow, body)
    refusal = await _trigger(visit, wizard, workflow, body, found) if body.trigger else None
    if stored and (refusal is not None or not body.trigger):
        return await _emitted(visit, workflow, body, found), refusal
    answer = await answers.render(visit.context, visit.session, workflow, visit.caller, found, body.step_number)
    return answer, refusal


def _changed(workflow: WorkflowRow, body: StepBody) -> set[str]:
    """The fields that would get another value; absent and null are the same."""
    changed = {name for name, value in body.fields.items() if workflow.fields.get(name) != value}
    for name, file in body.files.items():
        if workflow.files.get(name, {}).get("sha256") != (file.sha256 if file else None):
            changed.add(name)
    return changed


def _write(
    visit: Visit, wizard: Wizard, workflow: WorkflowRow, body: StepBody, changed: set[str], found: Found, facts: Facts
) -> bool:
    """Take over what was sent; whether anything is new. A null that was never a value is kept too: it was sent."""
    new = changed | ({*body.fields, *body.files} - workflow.field_steps.keys())
    if not _advance(workflow, body) and not new:
        return False
    if changed:
        workflow.status, workflow.reason, workflow.ended_at = "in_progress", None, None
    workflow.fields = {**workflow.fields, **body.fields}
    workflow.field_steps = {**workflow.field_steps, **dict.fromkeys(sorted(new), body.step_number)}
    sent = {name: file for name, file in body.files.items() if name in changed}
    kept = {name: file for name, file in workflow.files.items() if name not in sent}
    workflow.files = {**kept, **files.seal(visit.context.keyring, workflow.id, sent, facts)}
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
    if is_new and await repository.open_drafts(visit.session, workflow.owner_id, OPEN_DRAFTS) >= OPEN_DRAFTS:
        raise Problem("too_many_drafts", f"You have {OPEN_DRAFTS} open drafts; finish or delete some first.")
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


async def _emitted(visit: Visit, workflow: WorkflowRow, body: StepBody, found: Found | None) -> dict[str, Any]:
    """The answer, which is the event too."""
    answer = await answers.render(visit.context, visit.session, workflow, visit.caller, found, body.step_number)
    await visit.context.ledger.emit_topic(visit.session, workflow.id, "workflow", answer)
    return answer


# ---- the trigger


async def _trigger(visit: Visit, wizard: Wizard, workflow: WorkflowRow, body: StepBody, found: Found) -> Problem | None:
    """Start the job, or say why not; a refusal takes back only what the trigger itself did."""
    variant = await wizard.variant(visit, workflow.fields)
    refusal = await checks.check_trigger(visit, wizard, workflow, variant, found)
    if refusal is not None:
        return refusal
    ledger = visit.context.ledger
    try:
        async with visit.session.begin_nested():
            request = await wizard.start(visit, workflow)
            await ledger.submit(visit.session, request)
    except Problem as problem:
        return checks.placed(problem, wizard, variant)
    except IntegrityError as error:
        return checks.placed(problem_of_constraint(error), wizard, variant)
    workflow.job_id, workflow.result = request.id, None
    workflow.status, workflow.reason, workflow.ended_at = "in_progress", None, None
    workflow.revision += 1
    workflow.updated_at = datetime.now(UTC)
    await visit.session.flush()
    await audit.record(
        visit.session, visit.caller, "workflow.trigger", "workflow", workflow.id, job=request.id,
        kind=request.definition.kind,
    )  # fmt: skip
    await _emitted(visit, workflow, body, found)
    if request.finished is not None:
        await ledger.complete(visit.session, request)
    return None
