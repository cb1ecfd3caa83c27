"""How a workflow looks on the wire: the answer to a step, GET /workflows/{id} and the data of its events are one object."""

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from services.app import references
from services.app.context import AppContext
from services.app.identity.caller import Caller
from services.app.references import Found
from services.app.wizards import checks, repository
from services.app.wizards.contract import Visit, Wizard
from services.app.wizards.registry import WIZARDS
from services.app.wizards.repository import Standing, standing_of
from services.app.wizards.tables import WorkflowRow
from shared.clock import iso
from shared.jobs import views
from shared.jobs.ledger import JobView

_MESSAGES = {
    Standing.DRAFT: "Step {step} of {total_steps} is saved.",
    Standing.RUNNING: "The job has been started.",
    Standing.FAILED: "The workflow has failed: {reason}",
    Standing.COMPLETED: "The workflow is completed.",
    Standing.CANCELLED: "The workflow is cancelled.",
}


async def render(
    context: AppContext,
    session: AsyncSession,
    workflow: WorkflowRow,
    caller: Caller | None = None,
    found: Found | None = None,
    step: int | None = None,
) -> dict[str, Any]:
    """The whole object, as its owner sees it.

    `caller` spares the look-up of the owner when it is they who ask, `found` that of what the fields name. `step` is
    the one that this answers.
    """
    owner = caller if caller is not None and caller.user_id == workflow.owner_id else None
    visit = Visit(context, session, owner or await repository.owner_of(session, workflow))
    wizard = WIZARDS[workflow.type]
    job = await views.load_one(session, workflow.job_id) if workflow.job_id else None
    standing = standing_of(workflow, job["state"] if job else None)
    variant = await wizard.variant(visit, workflow.fields)
    if found is None:
        found = await references.find(session, references.named_in(workflow.fields, wizard.references))
    needed = []
    if standing in (Standing.DRAFT, Standing.FAILED):
        needed = await checks.missing(visit, wizard, variant, checks.values_of(workflow), found)
    missing = [
        {"field": one.field, "step": wizard.step_of(one.field, variant), "code": one.code, "message": one.message}
        for one in needed
    ]
    message = _MESSAGES[standing].format(
        step=step or workflow.current_step, total_steps=workflow.total_steps, reason=workflow.reason
    )
    steps = {**fields_of(visit, wizard, workflow, found), **await wizard.computed(visit, workflow.fields)}
    return _compose(workflow, job, message, missing, steps)


def fields_of(visit: Visit, wizard: Wizard, workflow: WorkflowRow, found: Found) -> dict[str, Any]:
    """The fields as sent, files by their description, and beside every `X_id` what it names."""
    shown: dict[str, Any] = dict(workflow.fields)
    for name in wizard.files.keys() & workflow.field_steps.keys():
        file = workflow.files.get(name)
        shown[name] = file and {key: file[key] for key in ("name", "size", "sha256")}
    for name, kind in wizard.references.items():
        if name in workflow.fields:
            reference = references.named(found, kind, workflow.fields[name])
            visible = reference is not None and reference.may_be_named_by(visit.caller)
            shown[name.removesuffix("_id")] = reference.view() if reference is not None and visible else None
    return shown


def _compose(
    workflow: WorkflowRow,
    job: JobView | None,
    message: str,
    missing: list[dict[str, Any]],
    steps: dict[str, Any],
) -> dict[str, Any]:
    base = f"/workflows/{workflow.id}"
    return {
        "object": "workflow",
        "message": message,
        "id": str(workflow.id),
        "workflow_id": str(workflow.id),
        "workflow_type": workflow.type,
        "owner_id": str(workflow.owner_id),
        "status": workflow.status,
        "current_step": workflow.current_step,
        "total_steps": workflow.total_steps,
        "reason": workflow.reason,
        "missing": missing,
        "workflow_steps": steps,
        "field_steps": workflow.field_steps,
        "job": job,
        "result": workflow.result,
        "links": {
            "self": base,
            "events": f"{base}/events",
            "job": f"/jobs/{workflow.job_id}" if workflow.job_id else None,
        },
        "revision": workflow.revision,
        "created_at": iso(workflow.created_at),
        "updated_at": iso(workflow.updated_at),
    }
