"""Which clusters fit a deployment, and how well: a pure look at what is known, at any time, as often as wanted."""

from typing import Any
from uuid import UUID

from services.app.clusters import repository
from services.app.clusters.tables import ClusterRow
from services.app.endpoints.deploy import effective_config, settings_refusal
from services.app.models import repository as models
from services.app.models.tables import ModelRow
from services.app.wizards import service as wizards
from services.app.wizards.contract import Fields, Visit
from services.app.wizards.fields import CONFIG_REQUIRED
from services.app.wizards.registry import WIZARDS
from shared.errors import Fault, Problem

OVERHEAD_BYTES = 256 * 1024**2  # of a server beside weights and cache
HEADROOM = 1.2


async def recommend(visit: Visit, workflow_id: UUID) -> list[dict[str, Any]]:
    """`[{id, cluster, fits, score, reasons}]`, the best first. 422 `missing_fields` when asked too early."""
    workflow = await wizards.readable(visit, workflow_id)
    if workflow.type != "model_deployment":
        raise Problem("wrong_wizard", "Clusters are recommended for the deployment of a model.")
    fields = workflow.fields
    config = await effective_config(visit.session, fields)
    absent = [name for name in ("project_id", "model_id") if not fields.get(name)]
    absent += [f"deploy_config.{name}" for name in CONFIG_REQUIRED if config.get(name) is None]
    if absent:
        raise await _too_early(visit, fields, absent)
    model = await models.get(visit.session, UUID(fields["model_id"]))
    if model is None or model.state == "deleted" or not visit.caller.sees(model.project_id):
        raise Problem("reference_not_found", "There is no such model any more.", param="model_id")
    found = [_judge(cluster, model, config, fields) for cluster in await repository.candidates(visit.session)]
    return sorted(found, key=lambda one: (not one["fits"], -one["score"], one["cluster"]["name"]))


async def _too_early(visit: Visit, fields: Fields, absent: list[str]) -> Problem:
    wizard = WIZARDS["model_deployment"]
    variant = await wizard.variant(visit, fields)
    faults = [
        Fault(name, "missing", "is needed for a recommendation", wizard.step_of(name, variant)) for name in absent
    ]
    return Problem("missing_fields", f"Needed first: {', '.join(absent)}.", faults=faults)


def memory_needed(model: ModelRow, config: dict[str, Any]) -> int | None:
    """Bytes for weights, the cache of all concurrent requests, and the server; None when the weights are not known."""
    weights = model.facts.get("weights_bytes") or model.size
    if weights is None:
        return None
    tokens = config["avg_sequence_length"] + config["avg_context_length"]
    cache = (model.facts.get("kv_bytes_per_token") or 0) * tokens * config["concurrent_requests"]
    return int((weights + cache) * HEADROOM) + OVERHEAD_BYTES


def _judge(cluster: ClusterRow, model: ModelRow, config: dict[str, Any], fields: Fields) -> dict[str, Any]:
    fits, score, reason = _fit(cluster, model, config)
    refusal = settings_refusal(fields, model, cluster) if fits else None
    if refusal is not None:
        fits, score, reason = False, 0, refusal
    return {
        "id": str(cluster.id),
        "cluster": {"id": str(cluster.id), "name": cluster.name, "icon": cluster.icon, "kind": cluster.kind},
        "fits": fits,
        "score": score,
        "reasons": [reason],
    }


def _fit(cluster: ClusterRow, model: ModelRow, config: dict[str, Any]) -> tuple[bool, int, str]:
    """Whether it fits, how well from 0 to 100, and why."""
    if cluster.state != "available":
        return False, 0, f"The cluster is {cluster.state}."
    if model.provider_type == "cloud_model":
        if cluster.kind == "local":
            return False, 0, "This machine does not run proxies to cloud models; register a Kubernetes cluster."
        return True, 50, "A proxy to a cloud model needs little."
    needed, free = memory_needed(model, config), _free_memory(cluster)
    if needed is None or free is None:
        return True, 50, f"Not known: how much memory {'the model needs' if needed is None else 'is free there'}."
    if needed > free:
        return False, 0, f"It needs about {_gib(needed)} GiB of memory; the largest node has {_gib(free)} GiB free."
    words = f"It needs about {_gib(needed)} GiB of memory, and {_gib(free)} GiB are free."
    return True, 50 + int(50 * (1 - needed / free)), words


def _free_memory(cluster: ClusterRow) -> int | None:
    """Bytes on the node that has most: those of this machine as last seen, of others what pods may have."""
    found = [
        node.get("memory_available_bytes") or node.get("memory_allocatable") for node in cluster.facts.get("nodes", [])
    ]
    return max((int(one) for one in found if one), default=None)


def _gib(size: int) -> str:
    return f"{size / 1024**3:.1f}"
