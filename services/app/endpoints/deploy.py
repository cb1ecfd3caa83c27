"""What a deployment needs before it starts, and the start itself: checks, the reserved name, the job."""

import secrets
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from services.app.clusters import repository as clusters
from services.app.clusters.tables import ClusterRow
from services.app.credentials import service as credentials
from services.app.endpoints import repository, service
from services.app.endpoints.tables import EndpointRow
from services.app.models import repository as models
from services.app.models import scans
from services.app.models.tables import ModelRow
from services.app.projects import quotas
from services.app.templates import repository as templates
from services.app.wizards.contract import Fields, Missing, Visit
from services.app.wizards.fields import dns_label
from services.app.wizards.tables import WorkflowRow
from shared.contracts.deployments import DeploySpec, ServedConfig, Tuning, unfollowed
from shared.contracts.models import ModelMetadata
from shared.errors import Problem
from shared.jobs.ledger import JobRequest

RESULT_SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"const": "endpoint"},
        "id": {"type": "string", "format": "uuid"},
        "name": {"type": "string"},
        "href": {"type": "string"},
        "url": {"type": "string"},
        "replicas": {"type": "integer"},
        "concurrency": {"type": "integer"},
    },
}


def key_context(endpoint_id: UUID) -> str:
    return f"endpoint:{endpoint_id}"


async def effective_config(session: AsyncSession, fields: Fields) -> dict[str, Any]:
    """The deploy configuration, what is absent filled from the template."""
    given = {name: value for name, value in (fields.get("deploy_config") or {}).items() if value is not None}
    template_id = fields.get("template_id")
    template = await templates.get(session, UUID(template_id)) if template_id else None
    return {**(template.deploy_config if template else {}), **given}


async def no_longer_fitting(visit: Visit, fields: Fields) -> list[Missing]:
    """Choices that an earlier one has since ruled out."""
    found: list[Missing] = []
    model = await models.get(visit.session, UUID(fields["model_id"])) if fields.get("model_id") else None
    project = fields.get("project_id")
    if model is not None and project and model.project_id not in (None, UUID(project)):
        found.append(Missing("model_id", "The model belongs to another project.", "inconsistent"))
    if model is not None and model.provider_type != "cloud_model" and fields.get("credential_id"):
        found.append(Missing("credential_id", "A local model takes no credential.", "inconsistent"))
    elif project and fields.get("credential_id") and not await _is_usable(visit, fields):
        found.append(Missing("credential_id", "The credential belongs to another project.", "inconsistent"))
    cluster = await clusters.get(visit.session, UUID(fields["cluster_id"])) if fields.get("cluster_id") else None
    refusal = settings_refusal(fields, model, cluster)
    if refusal is not None:
        found.append(Missing("tuning", refusal, "inconsistent"))
    return found


def known_engine(model: ModelRow | None, cluster: ClusterRow | None) -> str | None:
    """The engine that will serve, where the kinds of model and cluster leave but one."""
    if model is not None and model.provider_type == "cloud_model":
        return "litellm"
    return "llama_cpp" if cluster is not None and cluster.kind == "local" else None


def tuning_refusal(name: str, tuning: Tuning, engine: str | None) -> str | None:
    """Why an endpoint of this name cannot have the settings, as a sentence; None as far as is known without its cluster."""
    taken = [adapter for adapter in tuning.lora or {} if adapter in (name, dns_label(name))]
    if taken:
        return f"The adapter {taken[0]} has the name of the endpoint itself."
    return unfollowed(engine, tuning) if engine is not None else None


def settings_refusal(fields: Fields, model: ModelRow | None, cluster: ClusterRow | None) -> str | None:
    """The same of a draft, as far as it has chosen."""
    tuning = Tuning.model_validate(fields.get("tuning") or {})
    return tuning_refusal(fields.get("endpoint_name") or "", tuning, known_engine(model, cluster))


async def _is_usable(visit: Visit, fields: Fields) -> bool:
    credential_id, project_id = UUID(fields["credential_id"]), UUID(fields["project_id"])
    try:
        await credentials.check_usable(visit.session, visit.caller, credential_id, project_id)
    except Problem:
        return False
    return True


async def start(visit: Visit, workflow: WorkflowRow) -> JobRequest:
    endpoint, model = await _prepared(visit, workflow)
    visit.session.add(endpoint)
    await visit.session.flush()
    return service.job_request(visit, endpoint, "deploy_model", spec_of(endpoint, model), workflow.id)


async def draft(visit: Visit, workflow: WorkflowRow) -> DeploySpec:
    """What `start` would deploy, after the same checks; nothing is kept, and each time the endpoint has another id."""
    return spec_of(*await _prepared(visit, workflow))


async def _prepared(visit: Visit, workflow: WorkflowRow) -> tuple[EndpointRow, ModelRow]:
    """The endpoint that a draft would make. Raises a problem where it may not be made."""
    fields = workflow.fields
    project_id = UUID(fields["project_id"])
    if not visit.caller.works_in(project_id):
        raise Problem("forbidden", "You may not deploy in this project any more.", param="project_id")
    model = await deployable_model(visit, UUID(fields["model_id"]))
    await scans.gate(visit.session, model, project_id, model.digest)
    await _check_cluster(visit.session, UUID(fields["cluster_id"]))
    credential_id = UUID(fields["credential_id"]) if fields.get("credential_id") else None
    if credential_id is not None:
        await credentials.check_usable(visit.session, visit.caller, credential_id, project_id)
    await quotas.check(visit.session, project_id, endpoints=1, jobs_in_flight=1)
    config = ServedConfig.model_validate(await effective_config(visit.session, fields))
    endpoint = _endpoint(visit, fields, project_id, model, config)
    await repository.check_name_free(visit.session, project_id, endpoint.slug)
    return endpoint, model


def spec_of(endpoint: EndpointRow, model: ModelRow) -> DeploySpec:
    """What an endpoint serves, at its latest generation."""
    return DeploySpec(
        endpoint_id=endpoint.id, project_id=endpoint.project_id, name=endpoint.name, model_id=model.id,
        digest=endpoint.digest, uri=model.uri if model.provider_type == "cloud_model" else None,
        metadata=ModelMetadata.model_validate({**model.facts, "modality": model.modality}),
        cluster_id=endpoint.cluster_id, credential_id=endpoint.credential_id,
        config=ServedConfig.model_validate(endpoint.deploy_config), tuning=Tuning.model_validate(endpoint.tuning),
        autoscale=endpoint.desired.get("autoscale"),
        generation=endpoint.generation,
    )  # fmt: skip


async def deployable_model(visit: Visit, model_id: UUID) -> ModelRow:
    model = await models.get(visit.session, model_id)
    if model is None or model.state == "deleted" or not visit.caller.sees(model.project_id):
        raise Problem("reference_not_found", "There is no such model any more.", param="model_id")
    if model.state != "active":
        why = (model.reason or "wait for its import").rstrip(".")
        raise Problem("model_not_ready", f"The model is {model.state}: {why}.", param="model_id")
    return model


async def _check_cluster(session: AsyncSession, cluster_id: UUID) -> None:
    """Whoever deletes the cluster waits until the endpoint is made, and sees it; or we see that it is being deleted."""
    cluster = await clusters.get(session, cluster_id, share=True)
    if cluster is None or cluster.state == "deleted":
        raise Problem("reference_not_found", "There is no such cluster any more.", param="cluster_id")
    if cluster.state != "available":
        why = f": {cluster.reason}" if cluster.reason else "."
        raise Problem("cluster_not_ready", f"The cluster is {cluster.state}{why}", param="cluster_id")


def _endpoint(visit: Visit, fields: Fields, project_id: UUID, model: ModelRow, config: ServedConfig) -> EndpointRow:
    endpoint_id = uuid4()
    key = visit.context.keyring.seal(secrets.token_urlsafe(32).encode(), key_context(endpoint_id))
    return EndpointRow(
        id=endpoint_id, project_id=project_id, name=fields["endpoint_name"], slug=dns_label(fields["endpoint_name"]),
        model_id=model.id, cluster_id=UUID(fields["cluster_id"]),
        template_id=UUID(fields["template_id"]) if fields.get("template_id") else None,
        credential_id=UUID(fields["credential_id"]) if fields.get("credential_id") else None, digest=model.digest,
        deploy_config=config.model_dump(mode="json", exclude_none=True),
        tuning=Tuning.model_validate(fields.get("tuning") or {}).kept(), phase="deploying", state="deploying", generation=1,
        sealed=key, created_by=visit.caller.user_id, desired={}, observed={}, revision=1,
    )  # fmt: skip


async def result_of(session: AsyncSession, endpoint_id: UUID) -> dict[str, Any] | None:
    endpoint = await repository.get(session, endpoint_id)
    if endpoint is None:
        return None
    replicas = endpoint.desired.get("replicas", 0)
    return {
        "type": "endpoint", "id": str(endpoint.id), "name": endpoint.name, "href": f"/endpoints/{endpoint.id}",
        "url": f"/endpoints/{endpoint.id}/v1", "replicas": replicas,
        "concurrency": replicas * endpoint.desired.get("concurrency", 0),
    }  # fmt: skip
