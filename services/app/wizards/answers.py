"""How a workflow looks on the wire: the answer to every step, GET /workflows/{id}, and the data of its events."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.app import references
from services.app.references import Reference
from services.app.wizards.contract import Missing, Variant, Visit, Wizard
from services.app.wizards.tables import WorkflowRow
from shared.clock import iso
from shared.jobs import views

Found = Mapping[tuple[str, UUID], Reference]


async def render(
    visit: Visit, wizard: Wizard, workflow: WorkflowRow, message: str, *, found: Found | None = None
) -> dict[str, Any]:
    """The whole answer. `found` spares the look-up of what the fields name."""
    if found is None:
        found = await references.find(visit.session, references.named_in(workflow.fields, wizard.references))
    variant = await wizard.variant(visit, workflow.fields)
    missing = await missing_now(visit, wizard, workflow, variant)
    steps = {**steps_view(visit, wizard, workflow, found), **await wizard.computed(visit, workflow.fields)}
    return await compose(visit.session, wizard, workflow, message, missing_view(wizard, variant, missing), steps)


async def missing_now(visit: Visit, wizard: Wizard, workflow: WorkflowRow, variant: Variant) -> list[Missing]:
    """What a trigger would still refuse; nothing once the workflow has ended."""
    if workflow.status in ("completed", "cancelled"):
        return []
    present = {**workflow.fields, **workflow.files}
    absent = [Missing(name, f"{label(name)} is required.") for name in variant.required if present.get(name) is None]
    return absent + await wizard.inconsistent(visit, workflow.fields)


def missing_view(wizard: Wizard, variant: Variant, missing: list[Missing]) -> list[dict[str, Any]]:
    return [
        {"field": one.field, "step": wizard.step_of(one.field, variant), "code": one.code, "message": one.message}
        for one in missing
    ]


def label(name: str) -> str:
    return name.replace("_", " ").replace(".", ": ").capitalize()


def steps_view(visit: Visit, wizard: Wizard, workflow: WorkflowRow, found: Found) -> dict[str, Any]:
    """The fields as sent, files by their description, and beside every `X_id` what it names."""
    shown: dict[str, Any] = dict(workflow.fields)
    for name, file in workflow.files.items():
        shown[name] = {key: file[key] for key in ("name", "size", "sha256")}
    for name, kind in wizard.references.items():
        if name in workflow.fields:
            value = workflow.fields[name]
            reference = found.get((kind, UUID(value))) if value else None
            visible = reference is not None and reference.may_be_named_by(visit.caller)
            shown[name.removesuffix("_id")] = reference.view() if reference is not None and visible else None
    return shown


async def compose(
    session: AsyncSession,
    wizard: Wizard,
    workflow: WorkflowRow,
    message: str,
    missing: list[dict[str, Any]],
    steps: dict[str, Any],
) -> dict[str, Any]:
    job = await views.load_one(session, workflow.job_id) if workflow.job_id else None
    base = f"/workflows/{workflow.id}"
    return {
        "object": "workflow",
        "message": message,
        "workflow_id": str(workflow.id),
        "workflow_type": wizard.type,
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
