"""Changing what an endpoint serves: another model or configuration, the number of workers, or who decides on it."""

from uuid import UUID

from pydantic import BaseModel, Field

from services.app.audit import service as audit
from services.app.clusters import repository as clusters
from services.app.endpoints import scale, service
from services.app.endpoints.deploy import deployable_model, known_engine, spec_of, tuning_refusal
from services.app.endpoints.tables import EndpointRow
from services.app.models import repository as models
from services.app.models import scans
from services.app.models.tables import ModelRow
from services.app.projects import quotas
from services.app.resources import Revisions, check_revision
from services.app.wizards.contract import Visit
from services.app.wizards.fields import DeployConfig
from shared.contracts.deployments import UNTUNED, Autoscale, Served, ServedConfig, Tuning, UpdateSpec
from shared.errors import Problem
from shared.jobs.ledger import JobView


class EndpointChange(BaseModel):
    """Absent is unchanged. `deploy_config` and `tuning` change the fields that they name: one of `tuning` that is null is
    for the engine to decide again. `autoscale` null: by hand again.
    """

    model_config = {"extra": "forbid"}

    model_id: UUID = Field(default=UUID(int=0), title="Model")
    deploy_config: DeployConfig = Field(default_factory=DeployConfig)
    tuning: Tuning = Field(UNTUNED, title="Settings of the engine")
    replicas: int = Field(1, ge=1, le=256, title="Workers")
    autoscale: Autoscale | None = None


async def change(visit: Visit, endpoint_id: UUID, wanted: EndpointChange, expected: Revisions | None) -> JobView:
    """Begin the change; the answer is the job. What is served now goes on until each new worker is ready."""
    given = wanted.model_fields_set
    endpoint = await scale.serving(visit, endpoint_id)
    check_revision(endpoint, expected)
    if not given:
        raise Problem("missing_fields", "Name what to change: model_id, deploy_config, tuning, replicas or autoscale.")
    if given == {"replicas"}:
        return await scale.scale_to(visit, endpoint, wanted.replicas)
    spec = await _update(visit, endpoint, wanted, given)
    endpoint.generation, endpoint.phase = spec.generation, "updating"
    service.settle(endpoint)
    await visit.session.flush()
    visit.context.hub.publish_after_commit(visit.session, service.ENDPOINTS)
    await audit.record(visit.session, visit.caller, "endpoint.change", "endpoint", endpoint_id,
                       project_id=endpoint.project_id, fields=sorted(given))  # fmt: skip
    return await visit.context.ledger.submit(
        visit.session, service.job_request(visit, endpoint, "update_endpoint", spec, None)
    )


async def _update(visit: Visit, endpoint: EndpointRow, wanted: EndpointChange, given: set[str]) -> UpdateSpec:
    served = await models.get(visit.session, endpoint.model_id)
    if served is None:
        raise Problem("model_not_ready", "The model that is served is not there any more.")
    model = await _model(visit, endpoint, wanted.model_id) if "model_id" in given else served
    config = endpoint.deploy_config
    if "deploy_config" in given:
        config = {**config, **wanted.deploy_config.model_dump(mode="json", exclude_none=True)}
    tuning = Tuning.model_validate(endpoint.tuning | wanted.tuning.model_dump(mode="json", exclude_unset=True))
    if "tuning" in given:
        await _check_tuning(visit, endpoint, model, tuning)
    if wanted.autoscale is not None:
        await _check_autoscale(visit, endpoint)
    now = int(endpoint.desired["replicas"])
    replicas = wanted.replicas if "replicas" in given else None if "deploy_config" in given else now
    await quotas.check(visit.session, endpoint.project_id, workers=max((replicas or now) - now, 0), jobs_in_flight=1)
    before = Served(spec=spec_of(endpoint, served), plan=endpoint.desired["plan"], replicas=now)
    digest = model.digest if "model_id" in given else endpoint.digest
    after = spec_of(endpoint, model).model_copy(
        update={
            "digest": digest, "config": ServedConfig.model_validate(config), "tuning": tuning,
            "generation": endpoint.generation + 1,
            **({"autoscale": wanted.autoscale} if "autoscale" in given else {}),
        }
    )  # fmt: skip
    return UpdateSpec(**after.model_dump(), replicas=replicas, before=before)


async def _model(visit: Visit, endpoint: EndpointRow, model_id: UUID) -> ModelRow:
    model = await deployable_model(visit, model_id)
    if model.project_id not in (None, endpoint.project_id):
        raise Problem("reference_not_found", "The model belongs to another project.", param="model_id")
    if (model.digest is None) != (endpoint.digest is None):
        raise Problem("conflict", "An endpoint of a model with files cannot go on with a cloud model, nor the other way round.",
                      param="model_id")  # fmt: skip
    await scans.gate(visit.session, model, endpoint.project_id, model.digest)
    return model


async def _check_tuning(visit: Visit, endpoint: EndpointRow, model: ModelRow, tuning: Tuning) -> None:
    """Another model may be for another engine: that is for the job to find out."""
    cluster = await clusters.get(visit.session, endpoint.cluster_id)
    engine = known_engine(model, cluster) or (endpoint.engine if model.id == endpoint.model_id else None)
    refusal = tuning_refusal(endpoint.name, tuning, engine)
    if refusal is not None:
        raise Problem("tuning_unsupported", refusal, param="tuning")


async def _check_autoscale(visit: Visit, endpoint: EndpointRow) -> None:
    cluster = await clusters.get(visit.session, endpoint.cluster_id)
    if cluster is not None and cluster.kind == "local":
        raise Problem("autoscale_unsupported", "This machine does not scale by itself; a Kubernetes cluster can.",
                      param="autoscale")  # fmt: skip
