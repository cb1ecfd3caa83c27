"""Add a cloud model: from the catalogue, or by hand with its uri. It has no files, so its job is done at once."""

from typing import Any, ClassVar
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from services.app.models import repository as models
from services.app.models import service as model_service
from services.app.models.tables import ModelRow
from services.app.projects import quotas
from services.app.wizards.contract import (
    Fields,
    Missing,
    Option,
    StepModel,
    Variant,
    Visit,
    Wizard,
    WizardStep,
    project_of,
)
from services.app.wizards.details import ModelDetails
from services.app.wizards.fields import CloudProviderType, Id, Modalities, modalities_of
from services.app.wizards.tables import WorkflowRow
from shared.contracts.deployments import CloudModelAdded, CloudModelSpec
from shared.errors import Fault
from shared.jobs.ledger import JobRequest, JobView


class ProviderTypeStep(StepModel):
    provider_type: CloudProviderType


class ProviderStep(StepModel):
    provider_id: Id


class CloudModelStep(StepModel):
    cloud_model_id: Id | None = None


class DetailsStep(ModelDetails):
    modality: Modalities | None = None


class CloudModelOnboarding(Wizard):
    type = "cloud_model_onboarding"
    title = "Add a cloud model"
    description = "Add a model that a provider serves: from the catalogue, or by its uri."
    path = "/models/cloud-model-workflow"
    steps = (
        WizardStep("provider_type", "Kind of provider", "Where the model comes from.", ProviderTypeStep),
        WizardStep(
            "provider", "Provider", "Who serves the model.", ProviderStep,
            {"provider_id": Option("/models/providers?type=cloud_model")},
        ),
        WizardStep(
            "cloud_model", "Model", "A model of the catalogue; none, to enter one by hand.", CloudModelStep,
            {"cloud_model_id": Option("/models?source=catalog{&provider_id}", depends_on=("provider_id",))},
        ),
        WizardStep(
            "details", "Details", "How the model is known here.", DetailsStep,
            {"icon": Option("/icons"), "project_id": Option("/projects")},
        ),
        WizardStep("job", "Adding", "The model is added."),
        WizardStep("result", "Done", "The model can be deployed."),
    )  # fmt: skip
    variants = (
        Variant(
            {}, ("provider_type", "provider", "cloud_model", "details", "job", "result"),
            ("provider_type", "provider_id", "name"),
            one_of=(("cloud_model_id", "uri"),), dependent={"uri": ("modality",)},
        ),
    )  # fmt: skip
    references: ClassVar[dict[str, str]] = {
        "provider_id": "provider",
        "cloud_model_id": "cloud_model",
        "project_id": "project",
    }
    result_schema = model_service.RESULT_SCHEMA

    async def check(self, visit: Visit, fields: Fields, changed: set[str]) -> list[Fault]:
        faults = await model_service.check_details(visit.session, visit.caller, fields, changed)
        if "uri" in changed and fields.get("uri"):
            faults += model_service.cloud_uri_faults(fields["uri"])
        return faults

    async def check_names(self, visit: Visit, fields: Fields, changed: set[str]) -> None:
        if "name" in changed:
            await model_service.check_name_free(visit.session, fields.get("name"))

    async def inconsistent(self, visit: Visit, fields: Fields) -> list[Missing]:
        faults: list[Missing] = []
        chosen = fields.get("cloud_model_id")
        if fields.get("provider_id"):
            provider = await models.provider(visit.session, UUID(fields["provider_id"]))
            if provider is not None and provider.type != "cloud_model":
                faults.append(Missing("provider_id", "This provider has no cloud models.", "inconsistent"))
        if chosen and fields.get("provider_id"):
            seed = await models.cloud_model(visit.session, UUID(chosen))
            if seed is not None and seed.provider_id != UUID(fields["provider_id"]):
                faults.append(Missing("cloud_model_id", "The cloud model is another provider's.", "inconsistent"))
        return faults

    async def start(self, visit: Visit, workflow: WorkflowRow) -> JobRequest:
        fields = workflow.fields
        project_id = project_of(fields)
        model_service.check_may_add(visit.caller, project_id)
        await quotas.check(visit.session, project_id, models=1)
        await model_service.check_name_free(visit.session, fields["name"])
        seed = (
            await models.cloud_model(visit.session, UUID(fields["cloud_model_id"]))
            if fields.get("cloud_model_id")
            else None
        )
        provider = await models.provider(visit.session, UUID(fields["provider_id"]))
        model = ModelRow(
            id=uuid4(), name=fields["name"], provider_type="cloud_model", provider_id=UUID(fields["provider_id"]),
            cloud_model_id=seed.id if seed else None, uri=seed.uri if seed else fields["uri"],
            author=fields.get("author") or (provider.name if provider else None), description=fields.get("description"),
            icon=fields.get("icon") or (provider.icon if provider else None), tags=fields.get("tags") or [],
            modality=modalities_of(fields.get("modality")) or (list(seed.modality) if seed else []), state="active",
            facts={"context_length": seed.context_length} if seed else {}, project_id=project_id,
            created_by=visit.caller.user_id,
        )  # fmt: skip
        visit.session.add(model)
        await visit.session.flush()
        return JobRequest(
            visit.context.jobs.latest("add_cloud_model"), CloudModelSpec(model_id=model.id, uri=model.uri or ""),
            project_id=project_id, owner_id=visit.caller.user_id,
            key_id=visit.caller.key_id, topic=workflow.id, resource_type="model",
            resource_id=model.id, finished=CloudModelAdded(model_id=model.id),
        )  # fmt: skip

    async def finish(self, session: AsyncSession, workflow: WorkflowRow, job: JobView) -> dict[str, Any] | None:
        return await model_service.result_of(session, UUID(job["resource"]["id"]))
