"""Takes away what is ours and nothing else: by our labels, object by object, until the cluster shows none of it."""

import asyncio
from collections.abc import Sequence

from services.cluster.runtimes.kubernetes import intent, names
from services.cluster.runtimes.kubernetes.intent import Intent, Stored
from services.cluster.runtimes.kubernetes.objects import GROUPS, Json, Objects, Refused
from shared.contracts.clusters import Orphan
from shared.jobs.outcomes import Retry

# In this order: first what would make others anew, last what they are counted by. Pods go with their owners.
KINDS = (
    "HorizontalPodAutoscaler", "Ingress", "HTTPRoute", "Deployment", "StatefulSet", "Job", "Pod", "Service",
    "PodDisruptionBudget", "PersistentVolumeClaim", "Secret", "ConfigMap",
)  # fmt: skip
_OPTIONAL = frozenset({"HTTPRoute"})
_FIRST_LOOK = 0.1  # seconds
_LONGEST_PAUSE = 1.0
_TRIES = 20
_LEFT_TO_OWNERS = 20.0  # seconds; then pods whose owner did not take them along are deleted by us


async def remove(objects: Objects, owner: str, endpoint_id: str, generation: int | None, timeout: float) -> None:
    stored = await _mark(objects, owner, endpoint_id, generation)
    await _sweep(objects, owner, endpoint_id, timeout, stored)
    if stored is not None:
        await objects.delete(_config_map(stored))


async def orphans(objects: Objects, owner: str, known: set[str]) -> list[Orphan]:
    found: dict[str, list[Json]] = {}
    for one in await _all(objects, owner, "", KINDS):
        endpoint_id = one["metadata"]["labels"].get(names.ENDPOINT)
        if endpoint_id and endpoint_id not in known:
            found.setdefault(endpoint_id, []).append(one)
    return [_orphan(endpoint_id, items) for endpoint_id, items in sorted(found.items())]


async def retire(objects: Objects, owner: str, wanted: Intent) -> None:
    """Delete what an earlier intent wanted and this one does not."""
    for one in wanted.retired:
        await delete_ours(objects, owner, wanted.endpoint_id, one.kind, one.name)


async def delete_ours(objects: Objects, owner: str, endpoint_id: str, kind: str, name: str) -> None:
    """Delete it if it is there, and this installation's."""
    found = await objects.get(kind, name) if kind in GROUPS else None
    if found is not None and _is_ours(found, owner, endpoint_id):
        await objects.delete({**found, "kind": kind})


async def _mark(objects: Objects, owner: str, endpoint_id: str, generation: int | None) -> Stored | None:
    """From now on nobody applies to this endpoint any more."""
    for _ in range(_TRIES):
        try:
            before = await intent.read(objects, owner, endpoint_id)
        except intent.Unreadable:  # nobody can apply by it either; it goes with all that is labelled
            return None
        if before is None:
            return None
        if generation is not None:
            intent.check_generation(before.intent, generation)
        if before.intent.removed:
            return before
        update = {
            "removed": True,
            "replicas": 0,
            "generation": before.intent.generation if generation is None else generation,
        }
        stored = await intent.change(objects, before, before.intent.model_copy(update=update))
        if stored is not None:
            return stored
    raise Retry("cluster_conflict", f"The endpoint {endpoint_id} is being changed by several at once.")


async def _sweep(objects: Objects, owner: str, endpoint_id: str, timeout: float, stored: Stored | None) -> None:
    clock = asyncio.get_running_loop().time
    begin, pause = clock(), _FIRST_LOOK
    kinds: Sequence[str] = KINDS
    while True:
        left = await _all(objects, owner, endpoint_id, kinds)
        left = [one for one in left if stored is None or one["metadata"]["uid"] != stored.uid]
        if not left:
            if kinds == KINDS:
                return
            kinds = KINDS  # once more over all: somebody may have been in the middle of an apply
            continue
        patient = clock() - begin < _LEFT_TO_OWNERS
        for one in left:
            if not one["metadata"].get("deletionTimestamp") and not (patient and _goes_with_its_owner(one)):
                await objects.delete(one)
        if clock() - begin > timeout:
            still = ", ".join(f"{one['kind']} {one['metadata']['name']}" for one in left[:5])
            raise Retry("not_gone_yet", f"Still there after {timeout:g} s: {still}.")
        kinds = [kind for kind in KINDS if any(one["kind"] == kind for one in left)]
        await asyncio.sleep(pause)
        pause = min(_LONGEST_PAUSE, 1.5 * pause)


async def _all(objects: Objects, owner: str, endpoint_id: str, kinds: Sequence[str]) -> list[Json]:
    selector = names.selector(owner, endpoint_id)

    async def some(kind: str) -> list[Json]:
        try:
            found = await objects.list(kind, selector)
        except Refused as refusal:
            if kind in _OPTIONAL and refusal.status in (403, 404):  # no such kind here
                return []
            raise
        return [{**one, "kind": kind} for one in found.items]

    listed = await asyncio.gather(*map(some, kinds))
    return [one for items in listed for one in items if _is_ours(one, owner, endpoint_id)]


def _is_ours(item: Json, owner: str, endpoint_id: str) -> bool:
    labels = item["metadata"].get("labels") or {}
    return (
        labels.get(names.MANAGED_BY) == "stepway"
        and labels.get(names.OWNER) == owner
        and (not endpoint_id or labels.get(names.ENDPOINT) == endpoint_id)
    )


def _goes_with_its_owner(item: Json) -> bool:
    owners = item["metadata"].get("ownerReferences") or []
    return item["kind"] == "Pod" and any(one.get("controller") for one in owners)


def _config_map(stored: Stored) -> Json:
    return {"kind": "ConfigMap", "metadata": {"name": stored.intent.name, "uid": stored.uid}}


def _orphan(endpoint_id: str, items: Sequence[Json]) -> Orphan:
    oldest = min(items, key=lambda one: str(one["metadata"].get("creationTimestamp")))
    jobs = [job for one in items if (job := (one["metadata"].get("annotations") or {}).get(names.JOB))]
    return Orphan(
        endpoint_id=endpoint_id,
        job=jobs[0] if jobs else None,
        created_at=oldest["metadata"].get("creationTimestamp"),
        objects=sorted(f"{one['kind']}/{one['metadata']['name']}" for one in items),
    )
