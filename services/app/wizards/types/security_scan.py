"""Scan a model's files for what could do harm."""

from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.app.models import scans
from services.app.wizards.contract import Fields, Option, StepModel, Variant, Visit, Wizard, WizardStep
from services.app.wizards.fields import Id
from services.app.wizards.tables import WorkflowRow
from shared.errors import Fault
from shared.jobs.ledger import JobRequest, JobView


class ModelStep(StepModel):
    model_id: Id


class ModelSecurityScan(Wizard):
    type = "model_security_scan"
    title = "Scan a model"
    description = "Look through a model's files for code and content that could do harm."
    path = "/models/security-scan"
    steps = (
        WizardStep(
            "model", "Model", "The model whose files are scanned.", ModelStep,
            {"model_id": Option("/models?source=local")},
        ),
        WizardStep("job", "Scanning", "Every file is looked at in a process of its own."),
        WizardStep("result", "Report", "What was found, by severity."),
    )  # fmt: skip
    variants = (Variant({}, ("model", "job", "result"), ("model_id",)),)
    references: ClassVar[dict[str, str]] = {"model_id": "model"}
    result_schema = scans.RESULT_SCHEMA

    async def check(self, visit: Visit, fields: Fields, changed: set[str]) -> list[Fault]:
        if not fields.get("model_id"):
            return []
        return await scans.faults(visit.session, UUID(fields["model_id"]))

    async def start(self, visit: Visit, workflow: WorkflowRow) -> JobRequest:
        return await scans.start(visit, UUID(workflow.fields["model_id"]), topic=workflow.id)

    async def finish(self, session: AsyncSession, workflow: WorkflowRow, job: JobView) -> dict[str, Any] | None:
        return await scans.result_of(session, UUID(job["id"]))
