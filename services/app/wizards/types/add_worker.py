"""Add workers to an endpoint, for more requests at the same time."""

from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.app.endpoints import deploy, scale
from services.app.wizards.contract import Fields, Option, StepModel, Variant, Visit, Wizard, WizardStep
from services.app.wizards.fields import Id, Positive
from services.app.wizards.tables import WorkflowRow
from shared.errors import Fault
from shared.jobs.ledger import JobRequest, JobView


class EndpointStep(StepModel):
    endpoint_id: Id
    additional_concurrency: Positive


class AddWorker(Wizard):
    type = "add_worker_to_endpoint"
    title = "Add workers"
    description = "Add workers to an endpoint, so that it serves more requests at the same time."
    path = "/endpoints/add-worker"
    steps = (
        WizardStep(
            "endpoint", "Endpoint", "Which endpoint, and how many more requests at the same time.", EndpointStep,
            {"endpoint_id": Option("/endpoints?state=running")},
        ),
        WizardStep("plan", "Plan", "How many whole workers that takes."),
        WizardStep("confirm", "Confirm", "Nothing more is asked: trigger it.", StepModel),
        WizardStep("job", "Adding", "The workers are started and asked something; a failure leaves the others alone."),
        WizardStep("result", "Done", "The endpoint's workers."),
    )  # fmt: skip
    variants = (
        Variant({}, ("endpoint", "plan", "confirm", "job", "result"), ("endpoint_id", "additional_concurrency")),
    )
    references: ClassVar[dict[str, str]] = {"endpoint_id": "endpoint"}
    result_schema = scale.RESULT_SCHEMA

    async def check(self, visit: Visit, fields: Fields, changed: set[str]) -> list[Fault]:
        if "endpoint_id" not in changed or not fields.get("endpoint_id"):
            return []
        return await scale.faults(visit, UUID(fields["endpoint_id"]))

    async def computed(self, visit: Visit, fields: Fields) -> dict[str, Any]:
        if not fields.get("endpoint_id") or not fields.get("additional_concurrency"):
            return {}
        return await scale.plan_view(visit, UUID(fields["endpoint_id"]), fields["additional_concurrency"])

    async def start(self, visit: Visit, workflow: WorkflowRow) -> JobRequest:
        endpoint_id, more = UUID(workflow.fields["endpoint_id"]), workflow.fields["additional_concurrency"]
        return await scale.start_adding(visit, endpoint_id, more, topic=workflow.id)

    async def finish(self, session: AsyncSession, workflow: WorkflowRow, job: JobView) -> dict[str, Any] | None:
        return await deploy.result_of(session, UUID(job["resource"]["id"]))
