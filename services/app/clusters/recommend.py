"""Which clusters fit a deployment, and how well: a pure look at what is known, at any time, as often as wanted."""

from typing import Any
from uuid import UUID

from services.app.clusters import repository
from services.app.clusters.tables import ClusterRow
from services.app.endpoints.deploy import effective_config
from services.app.models import repository as models
from services.app.models.tables import ModelRow
from services.app.wizards import repository as workflows
from services.app.wizards.contract import Visit
from services.app.wizards.fields import CONFIG_REQUIRED
from services.app.wizards.service import check_may_read
from shared.errors import Fault, Problem

OVERHEAD_BYTES = 256 * 1024**2  # of a server beside weights and cache
HEADROOM = 1.2


async def recommend(visit: Visit, workflow_id: UUID) -> list[dict[str, Any]]:
    """`[{id, cluster, fits, score, reasons}]`, the best first. 422 `missing_fields` when asked too early."""
    workflow = await workflows.get(visit.session, workflow_id)
    if workflow is None:
        raise Problem("not_found", "There is no such workflow.")
    check_may_read(visit.caller, workflow)
    if workflow.type != "model_deployment":
        raise Problem("wrong_wizard", "Clusters are recommended for the deployment of a model.")
    config = await effective_config(visit.session, workflow.fields)
    absent = [name for name in ("project_id", "model_id") if not workflow.fields.get(name)]
    absent += [f"deploy_config.{name}" for name in CONFIG_REQUIRED if config.get(name) is None]
    if absent:
        faults = [Fault(name, "missing", "is needed for a recommendation") for name in absent]
        raise Problem("missing_fields", f"Needed first: {', '.join(absent)}.", faults=faults)
    model = await models.get(visit.session, UUID(workflow.fields["model_id"]))
    if model is None:
        raise Problem("reference_not_found", "There is no such model any more.", param="model_id")
    found = [_judge(cluster, model, config) for cluster in await repository.candidates(visit.session)]
    return sorted(found, key=lambda one: (not one["fits"], -one["score"], one["cluster"]["name"]))


def memory_needed(model: ModelRow, config: dict[str, Any]) -> int | None:
    """Bytes for weights, the cache of all concurrent requests, and the server; None when the weights are not known."""
    weights = model.facts.get("weights_bytes") or model.size
    if weights is None:
        return None
    tokens = config["avg_sequence_length"] + config["avg_context_length"]
    cache = (model.facts.get("kv_bytes_per_token") or 0) * tokens * config["concurrent_requests"]
    return int((weights + cache) * HEADROOM) + OVERHEAD_BYTES


def _judge(cluster: ClusterRow, model: ModelRow, config: dict[str, Any]) -> dict[str, Any]:
    reasons: list[str] = []
    fits, score = True, 50
    if cluster.state != "available":
        fits, score = False, 0
        reasons.append(f"The cluster is {cluster.state}.")
    if model.provider_type == "cloud_model":
        if cluster.kind == "local":
            fits, score = False, 0
            reasons.append("This machine does not run proxies to cloud models; register a Kubernetes cluster.")
    else:
        fits, score = _judge_memory(cluster, memory_needed(model, config), fits, score, reasons)
    return {
        "id": str(cluster.id),
        "cluster": {"id": str(cluster.id), "name": cluster.name, "icon": cluster.icon, "kind": cluster.kind},
        "fits": fits,
        "score": score,
        "reasons": reasons or ["It has room for the model."],
    }


def _judge_memory(
    cluster: ClusterRow, needed: int | None, fits: bool, score: int, reasons: list[str]
) -> tuple[bool, int]:
    free = max((node.get("memory_available_bytes") or 0 for node in cluster.facts.get("nodes", [])), default=0)
    if needed is None or not free:
        return fits, score
    if needed > free:
        reasons.append(f"It needs about {_gib(needed)} GiB of memory; the largest node has {_gib(free)} GiB free.")
        return False, 0
    reasons.append(f"It needs about {_gib(needed)} GiB of memory, and {_gib(free)} GiB are free.")
    return fits, min(99, score + int(49 * (1 - needed / free))) if fits else score


def _gib(size: int) -> str:
    return f"{size / 1024**3:.1f}"
