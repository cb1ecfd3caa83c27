"""What an apply would make, before anybody makes it: tried by the cluster itself, weighed against quota and nodes."""

import asyncio
from dataclasses import dataclass

from services.cluster.runtimes.containers import Delivery, GpuRequest, Resources
from services.cluster.runtimes.kubernetes import inspect, names, pods
from services.cluster.runtimes.kubernetes.intent import Intent
from services.cluster.runtimes.kubernetes.manifests import Builder
from services.cluster.runtimes.kubernetes.objects import Conflict, Json, Objects
from services.cluster.runtimes.kubernetes.quantities import thousandths, whole
from shared.contracts.clusters import NodeFacts, NodeGpu
from shared.contracts.previews import Needs, Preview, Room
from shared.jobs.outcomes import Permanent

_HIDDEN = "(hidden)"
CAPACITY = "insufficient_capacity"


@dataclass(frozen=True, slots=True)
class _Nodes:
    """How many more workers fit on the nodes, and what the nodes that may take them have."""

    places: int
    rooms: list[Room]


@dataclass(frozen=True, slots=True)
class _Each:
    """A worker: so many pods, and what each of them asks for."""

    resources: Resources
    pods: int


async def preview(objects: Objects, builder: Builder) -> Preview:
    """Raises Retry when the cluster cannot be asked; what it refuses is among the problems."""
    wanted = [builder.secret(), *builder.all()]
    if builder.workload.delivery is not None and builder.workload.delivery.claim is not None:
        wanted.append(builder.loader())
    tried = await asyncio.gather(*(_try(objects, manifest) for manifest in wanted))
    problems = [problem for problem in tried if problem is not None]
    each, count = _Each(builder.container.resources, builder.container.pods), builder.workload.replicas
    needs = _needs(each, count, builder.workload.delivery)
    quotas, nodes = await asyncio.gather(
        _quotas(objects, each, needs, _made(wanted)),
        _weigh_nodes(objects, each, needs, names.base(builder.workload.endpoint_id)),
    )
    problems += [(CAPACITY, one) for one in _no_room(quotas, nodes.places, each, count)]
    return Preview(
        manifests=[_shown(one) for one in wanted], needs=needs, quotas=quotas, capacity=nodes.rooms, places=nodes.places,
        problems=[sentence for _, sentence in problems], code=problems[0][0] if problems else None,
    )  # fmt: skip


def _made(manifests: list[Json]) -> dict[str, int]:
    kinds = [one["kind"] for one in manifests]
    known = {"Deployment": "count/deployments.apps", "StatefulSet": "count/statefulsets.apps", "Service": "services"}
    return {name: kinds.count(kind) for kind, name in known.items() if kind in kinds}


async def _try(objects: Objects, manifest: Json) -> tuple[str, str] | None:
    """Code and sentence of what the cluster says against it."""
    name = f"{manifest['kind']} {manifest['metadata']['name']}"
    try:
        await objects.apply(manifest, dry_run=True)
    except Permanent as refusal:
        return refusal.code, f"{name}: {refusal.message}"
    except Conflict:
        return "cluster_conflict", f"{name}: it is being changed by another."
    return None


async def room_for_more(objects: Objects, intent: Intent, count: int) -> list[str]:
    """What lacks for so many workers beside those that the endpoint has, as sentences."""
    each = _Each(_resources_of(intent.leaders), intent.pods)
    needs = _needs(each, count)
    quotas = await _quotas(objects, each, needs, made={})
    return _no_room(quotas, (await _weigh_nodes(objects, each, needs, None)).places, each, count)


def _needs(each: _Each, count: int, delivery: Delivery | None = None) -> Needs:
    resources, pods = each.resources, count * each.pods
    return Needs(
        workers=count,
        cpu_millis=pods * resources.cpu_millis,
        memory_bytes=pods * resources.memory_bytes,
        gpus=pods * resources.gpus.count if resources.gpus else 0,
        gpu_resource=resources.gpus.resource if resources.gpus else None,
        storage_bytes=delivery.claim.size_bytes if delivery and delivery.claim else 0,
        node_disk_bytes=pods * delivery.size if delivery and delivery.mode == "fetch" else 0,
    )


async def _quotas(objects: Objects, each: _Each, needs: Needs, made: dict[str, int]) -> list[Room]:
    """`made`: how many objects of which kind will come beside the pods, by the names that quotas have for them."""
    needed = {
        "pods": str(needs.workers * each.pods),
        "count/pods": str(needs.workers * each.pods),
        "requests.cpu": pods.cpu(needs.cpu_millis),
        "cpu": pods.cpu(needs.cpu_millis),
        "requests.memory": str(needs.memory_bytes),
        "memory": str(needs.memory_bytes),
        "limits.memory": str(needs.memory_bytes),
        "requests.storage": str(needs.storage_bytes),
        "persistentvolumeclaims": "1" if needs.storage_bytes else "0",
    }
    needed |= {name: str(count) for name, count in made.items()}
    if needs.gpu_resource:
        needed[f"requests.{needs.gpu_resource}"] = str(needs.gpus)
    rooms = []
    for quota in (await objects.list("ResourceQuota")).items:
        status = quota.get("status") or {}
        hard, used = status.get("hard") or (quota.get("spec") or {}).get("hard") or {}, status.get("used") or {}
        for resource, amount in needed.items():
            if resource in hard and amount != "0":
                taken = str(used.get(resource, "0"))
                rooms.append(_room(quota["metadata"]["name"], resource, str(hard[resource]), taken, amount))
    return rooms


def _room(of: str, resource: str, limit: str, used: str, needed: str) -> Room:
    fits = thousandths(used) + thousandths(needed) <= thousandths(limit)
    return Room(of=of, resource=resource, limit=limit, used=used, needed=needed, fits=fits)


async def _weigh_nodes(objects: Objects, each: _Each, needs: Needs, but: str | None) -> _Nodes:
    """By what nodes have and pods of ours in the namespace have asked for, `but` one endpoint's."""
    resources = each.resources
    taken: dict[str, list[Json]] = {}
    for pod in (await objects.list("Pod")).items:
        node = (pod.get("spec") or {}).get("nodeName")
        if node and (but is None or not pod["metadata"]["name"].startswith(f"{but}-")):
            taken.setdefault(node, []).append(pod)
    usable = [node for node in await inspect.recent_nodes(objects.client) if _is_usable(node, resources.gpus)]
    places = sum(_on_node(node, taken.get(node.name, []), resources) for node in usable)
    there = [pod for node in usable for pod in taken.get(node.name, [])]
    rooms = [
        _room("nodes", "cpu", pods.cpu(sum(node.cpu_millis_allocatable for node in usable)),
              pods.cpu(_asked(there, "cpu")), pods.cpu(needs.cpu_millis)),
        _room("nodes", "memory", str(sum(node.memory_allocatable for node in usable)),
              str(_asked(there, "memory") // 1000), str(needs.memory_bytes)),
    ]  # fmt: skip
    if resources.gpus is not None:
        resource = resources.gpus.resource
        count = sum(gpu.count for node in usable for gpu in _suitable(node, resources.gpus))
        rooms.append(_room("nodes", resource, str(count), str(_asked(there, resource) // 1000), str(needs.gpus)))
    return _Nodes(places // each.pods, rooms)


def _is_usable(node: NodeFacts, gpus: GpuRequest | None) -> bool:
    if gpus is not None and not _suitable(node, gpus):
        return False
    return node.ready and node.schedulable and node.os in (None, "linux") and not _is_reserved(node, gpus)


def _on_node(node: NodeFacts, taken: list[Json], resources: Resources) -> int:
    rooms = [
        (node.cpu_millis_allocatable - _asked(taken, "cpu")) // resources.cpu_millis,
        (node.memory_allocatable - _asked(taken, "memory") // 1000) // resources.memory_bytes,
        node.pods_allocatable - len(taken),
    ]
    if resources.gpus is not None:
        free = sum(gpu.count for gpu in _suitable(node, resources.gpus))
        free -= _asked(taken, resources.gpus.resource) // 1000
        rooms.append(free // resources.gpus.count)
    return max(0, min(rooms))


def _suitable(node: NodeFacts, wanted: GpuRequest) -> list[NodeGpu]:
    kinds = [gpu for gpu in node.gpus if gpu.resource == wanted.resource]
    return [gpu for gpu in kinds if not wanted.products or gpu.product in wanted.products]


def _is_reserved(node: NodeFacts, gpus: GpuRequest | None) -> bool:
    vendor = gpus.resource.partition("/")[0] if gpus else ""
    hard = [taint for taint in node.taints if taint.effect in ("NoSchedule", "NoExecute")]
    return any(not vendor or taint.key.partition("/")[0] != vendor for taint in hard)


def _asked(pods: list[Json], resource: str) -> int:
    """Thousandths of what these pods' containers ask for."""
    return sum(
        thousandths(((one.get("resources") or {}).get("requests") or {}).get(resource))
        for pod in pods
        if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
        for one in pod["spec"].get("containers") or ()
    )


def _no_room(quotas: list[Room], places: int, of: _Each, count: int) -> list[str]:
    resources, group = of.resources, f"{of.pods} pods, each of them with " if of.pods > 1 else ""
    found = [
        f"The quota {one.of} allows {one.limit} of {one.resource}; {one.used} is used and {one.needed} is needed."
        for one in quotas
        if not one.fits
    ]
    if places < count:
        gpu = f" and {resources.gpus.count} × {resources.gpus.resource}" if resources.gpus else ""
        each = f"{resources.cpu_millis / 1000:g} CPUs, {resources.memory_bytes >> 20} MiB of memory{gpu}"
        found.append(f"The nodes have room for {places} of {count} workers, each with {group}{each}.")
    return found


def _resources_of(made: Json) -> Resources:
    """What each pod of a Deployment or StatefulSet of ours asks for."""
    spec = made["spec"]["template"]["spec"]
    asked = next(one for one in spec["containers"] if one["name"] == pods.SERVER)["resources"]["requests"]
    gpu = next((name for name in asked if "/" in name), None)
    return Resources(
        cpu_millis=thousandths(asked["cpu"]),
        memory_bytes=whole(asked["memory"]),
        gpus=GpuRequest(resource=gpu, count=whole(asked[gpu]), products=pods.gpu_products(spec)) if gpu else None,
    )


def _shown(manifest: Json) -> Json:
    if manifest["kind"] != "Secret":
        return manifest
    return {**manifest, "data": dict.fromkeys(manifest["data"], _HIDDEN)}
