"""Deploy a model: in a project, from a template, on a cluster. A cloud model also needs a credential."""

from typing import Any, ClassVar
from uuid import UUID

from pydantic import Field
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.endpoints import deploy, repository
from services.app.models import repository as models
from services.app.wizards.contract import Fields, Missing, Option, StepModel, Variant, Visit, Wizard, WizardStep
from services.app.wizards.credentials import type_faults
from services.app.wizards.fields import CONFIG_REQUIRED, DeployConfig, Id, Name, dns_label
from services.app.wizards.tables import WorkflowRow
from shared.contracts.deployments import DeploySpec, Tuning
from shared.errors import Fault
from shared.jobs.ledger import JobRequest, JobView

# What a template may fill; one that does not leaves it missing.
_CONFIGURED = tuple((f"deploy_config.{name}", "template_id") for name in CONFIG_REQUIRED)


class ModelStep(StepModel):
    project_id: Id
    model_id: Id


class CredentialStep(StepModel):
    credential_id: Id


class TemplateStep(StepModel):
    template_id: Id | None = None


class ConfigStep(StepModel):
    endpoint_name: Name
    deploy_config: DeployConfig | None = None
    tuning: Tuning | None = Field(None, title="Settings of the engine")


class ClusterStep(StepModel):
    cluster_id: Id


class ModelDeployment(Wizard):
    type = "model_deployment"
    title = "Deploy a model"
    description = "Serve a model as an endpoint on a cluster."
    path = "/models/deploy-workflow"
    steps = (
        WizardStep(
            "model", "Model", "What is served, and in which project.", ModelStep,
            {"project_id": Option("/projects"), "model_id": Option("/models?state=active{&project_id}")},
        ),
        WizardStep(
            "credential", "Access", "The key with which the provider is asked; for cloud models only.", CredentialStep,
            {"credential_id": Option("/credentials{?project_id}", depends_on=("project_id",))},
        ),
        WizardStep(
            "template", "Template", "Defaults for a kind of use.", TemplateStep, {"template_id": Option("/templates")},
        ),
        WizardStep("config", "Endpoint", "Its name, what it is to carry, and settings of the engine.", ConfigStep),
        WizardStep("clusters", "Recommendations", "Which clusters fit, and how well."),
        WizardStep(
            "cluster", "Cluster", "Where it runs.", ClusterStep,
            {
                "cluster_id": Option(
                    "/clusters/recommended/{workflow_id}", "cluster.id", "cluster.name",
                    ("project_id", "model_id", "template_id", "deploy_config"),
                )
            },
        ),
        WizardStep("job", "Deploying", "The model is brought there, started and asked something."),
    )  # fmt: skip
    variants = (
        Variant(
            {"model.provider_type": "cloud_model"},
            ("model", "credential", "template", "config", "clusters", "cluster", "job"),
            ("project_id", "model_id", "credential_id", "endpoint_name", "cluster_id"),
            any_of=_CONFIGURED,
        ),
        Variant(
            {},
            ("model", "template", "config", "clusters", "cluster", "job"),
            ("project_id", "model_id", "endpoint_name", "cluster_id"),
            any_of=_CONFIGURED,
        ),
    )
    references: ClassVar[dict[str, str]] = {
        "project_id": "project",
        "model_id": "model",
        "credential_id": "credential",
        "template_id": "template",
        "cluster_id": "cluster",
    }
    result_schema = deploy.RESULT_SCHEMA
    has_preview = True

    async def variant(self, visit: Visit, fields: Fields) -> Variant:
        model = await models.get(visit.session, UUID(fields["model_id"])) if fields.get("model_id") else None
        is_seen = model is not None and visit.caller.sees(model.project_id)  # else as if there were none
        is_cloud = model is not None and is_seen and model.provider_type == "cloud_model"
        return self.variants[0] if is_cloud else self.variants[1]

    async def check(self, visit: Visit, fields: Fields, changed: set[str]) -> list[Fault]:
        faults: list[Fault] = []
        if (
            "project_id" in changed
            and fields.get("project_id")
            and not visit.caller.works_in(UUID(fields["project_id"]))
        ):
            faults.append(Fault("project_id", "not_a_member", "is a project that you may only read"))
        if "endpoint_name" in changed and fields.get("endpoint_name") and dns_label(fields["endpoint_name"]) is None:
            faults.append(
                Fault("endpoint_name", "no_dns_label", "must contain a letter or a digit of the Latin alphabet")
            )
        if "credential_id" in changed:
            faults += await type_faults(visit, "credential_id", fields, await _credential_type(visit, fields))
        return faults

    async def check_names(self, visit: Visit, fields: Fields, changed: set[str]) -> None:
        if changed & {"project_id", "endpoint_name"} and fields.get("project_id") and fields.get("endpoint_name"):
            await repository.check_name_free(
                visit.session, UUID(fields["project_id"]), dns_label(fields["endpoint_name"])
            )

    async def inconsistent(self, visit: Visit, fields: Fields) -> list[Missing]:
        config = await deploy.effective_config(visit.session, fields)
        absent = [
            Missing(f"deploy_config.{name}", f"{name.replace('_', ' ').capitalize()} is required.")
            for name in CONFIG_REQUIRED
            if config.get(name) is None
        ]
        unfit = await deploy.no_longer_fitting(visit, fields)
        wrong = await type_faults(visit, "credential_id", fields, await _credential_type(visit, fields))
        return absent + unfit + [Missing("credential_id", fault.message, "inconsistent") for fault in wrong]

    async def start(self, visit: Visit, workflow: WorkflowRow) -> JobRequest:
        return await deploy.start(visit, workflow)

    async def preview(self, visit: Visit, workflow: WorkflowRow) -> DeploySpec:
        return await deploy.draft(visit, workflow)

    async def finish(self, session: AsyncSession, workflow: WorkflowRow, job: JobView) -> dict[str, Any] | None:
        return await deploy.result_of(session, UUID(job["resource"]["id"]))


async def _credential_type(visit: Visit, fields: Fields) -> str | None:
    """The type of credential that the model's provider takes."""
    if not fields.get("credential_id") or not fields.get("model_id"):
        return None
    model = await models.get(visit.session, UUID(fields["model_id"]))
    if model is None or model.provider_type != "cloud_model" or model.provider_id is None:
        return None
    provider = await models.provider(visit.session, model.provider_id)
    return provider.credential_type if provider else None
