"""Add a local model: its files come from a hub, from a URL, or from a folder of this machine."""

from typing import Any, ClassVar
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from services.app.credentials import service as credentials
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
from services.app.wizards.credentials import type_faults
from services.app.wizards.details import ModelDetails
from services.app.wizards.fields import FilledText, Id, LocalProviderType, Modalities, modalities_of
from services.app.wizards.tables import WorkflowRow
from shared.contracts.models import ImportSpec, Source
from shared.errors import Fault, Problem
from shared.http.problems import sentence
from shared.jobs.ledger import JobRequest, JobView

HUB_CREDENTIAL = "huggingface"  # a token, which a hub or a web server takes
_KEYS = ("modality", "provider_type", "details", "credential", "job", "result")


class ModalityStep(StepModel):
    modality: Modalities


class ProviderTypeStep(StepModel):
    provider_type: LocalProviderType


class DetailsStep(ModelDetails):
    uri: FilledText
    revision: FilledText | None = None


class CredentialStep(StepModel):
    proprietary_credential_id: Id | None = None


class LocalModelOnboarding(Wizard):
    type = "local_model_onboarding"
    title = "Add a local model"
    description = "Add a model by its files: from Hugging Face, a URL, or a folder of this machine."
    path = "/models/local-model-workflow"
    steps = (
        WizardStep("modality", "Modality", "What goes in and what comes out.", ModalityStep),
        WizardStep("provider_type", "Source", "Where the files come from.", ProviderTypeStep),
        WizardStep(
            "details", "Details", "How the model is known here, and where its files are.", DetailsStep,
            {"icon": Option("/icons"), "project_id": Option("/projects")},
        ),
        WizardStep(
            "credential", "Access", "A credential, when the source asks for one.", CredentialStep,
            {"proprietary_credential_id": Option(f"/credentials?type={HUB_CREDENTIAL}")},
        ),
        WizardStep("job", "Importing", "The files are brought here, checked and read."),
        WizardStep("result", "Done", "The model can be scanned and deployed."),
    )  # fmt: skip
    variants = (
        Variant({"provider_type": "url"}, _KEYS, ("modality", "provider_type", "name", "uri", "icon")),
        Variant({"provider_type": "disk"}, _KEYS, ("modality", "provider_type", "name", "uri", "icon")),
        Variant({}, _KEYS, ("modality", "provider_type", "name", "uri")),
    )
    references: ClassVar[dict[str, str]] = {"proprietary_credential_id": "credential", "project_id": "project"}
    result_schema = model_service.RESULT_SCHEMA

    async def check(self, visit: Visit, fields: Fields, changed: set[str]) -> list[Fault]:
        faults = await model_service.check_details(visit.session, visit.caller, fields, changed)
        source = fields.get("provider_type")
        if fields.get("uri") and "uri" in changed:
            uri = fields["uri"]
            faults += (
                model_service.local_uri_faults(visit.context.settings, Source(source), uri)
                if source
                else model_service.secret_uri_faults(uri)
            )
        if "revision" in changed and fields.get("revision"):
            faults += model_service.revision_faults(fields["revision"])
        if "proprietary_credential_id" in changed:
            faults += await type_faults(visit, "proprietary_credential_id", fields, HUB_CREDENTIAL)
        return faults

    async def check_names(self, visit: Visit, fields: Fields, changed: set[str]) -> None:
        if "name" in changed:
            await model_service.check_name_free(visit.session, fields.get("name"))

    async def inconsistent(self, visit: Visit, fields: Fields) -> list[Missing]:
        """A source that was chosen later may not know the uri that was entered before."""
        source, uri = fields.get("provider_type"), fields.get("uri")
        if not source or not uri:
            return []
        faults = model_service.local_uri_faults(visit.context.settings, Source(source), uri)
        return [Missing("uri", sentence(fault, "The uri"), "inconsistent") for fault in faults]

    async def start(self, visit: Visit, workflow: WorkflowRow) -> JobRequest:
        fields = workflow.fields
        project_id = project_of(fields)
        model_service.check_may_add(visit.caller, project_id)
        credential = fields.get("proprietary_credential_id")
        if credential:
            await _check_credential(visit, UUID(credential), project_id)
        await quotas.check(visit.session, project_id, models=1, jobs_in_flight=1)
        await model_service.check_name_free(visit.session, fields["name"])
        model = ModelRow(
            id=uuid4(), name=fields["name"], provider_type=fields["provider_type"],
            provider_id=await models.provider_of_type(visit.session, fields["provider_type"]), uri=fields["uri"],
            author=fields.get("author"), description=fields.get("description"), icon=fields.get("icon"),
            tags=fields.get("tags") or [], modality=modalities_of(fields["modality"]), state="importing",
            credential_id=UUID(credential) if credential else None, project_id=project_id, created_by=visit.caller.user_id,
        )  # fmt: skip
        visit.session.add(model)
        await visit.session.flush()
        spec = ImportSpec(
            model_id=model.id, project_id=project_id, source=Source(fields["provider_type"]), uri=fields["uri"],
            credential_id=model.credential_id, revision=fields.get("revision"),
        )  # fmt: skip
        return JobRequest(
            visit.context.jobs.latest("import_model"), spec, project_id=project_id, owner_id=visit.caller.user_id,
            key_id=visit.caller.key_id, topic=workflow.id, resource_type="model", resource_id=model.id,
        )  # fmt: skip

    async def finish(self, session: AsyncSession, workflow: WorkflowRow, job: JobView) -> dict[str, Any] | None:
        return await model_service.result_of(session, UUID(job["resource"]["id"]))


async def _check_credential(visit: Visit, credential_id: UUID, project_id: UUID | None) -> None:
    try:
        await credentials.check_usable(visit.session, visit.caller, credential_id, project_id)
    except Problem as problem:
        raise Problem(problem.code, problem.detail, param="proprietary_credential_id") from problem
