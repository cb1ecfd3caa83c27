"""What a cluster has: nodes, GPUs, storage, ingress and runtime classes, Gateways, and which cluster it is.

The answers are taken as JSON, not through the official client's models: a field of an unexpected type then costs that
field and not the inspection, and a node is read in a tenth of the time.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from services.cluster.runtimes.kubernetes import faults
from services.cluster.runtimes.kubernetes.client import KubernetesClient
from services.cluster.runtimes.kubernetes.gpus import gpus_of
from services.cluster.runtimes.kubernetes.objects import Objects, Refused
from services.cluster.runtimes.kubernetes.permissions import IDENTITY_NAMESPACE
from services.cluster.runtimes.kubernetes.quantities import thousandths, whole
from services.cluster.runtimes.kubernetes.reasons import moment
from shared import clock
from shared.contracts.clusters import (
    ClusterInspection,
    GatewayFacts,
    IngressClassFacts,
    NodeCondition,
    NodeFacts,
    Permission,
    RuntimeClassFacts,
    ServerVersion,
    StorageClassFacts,
    Taint,
)

_LINE = 253  # of a name or a reason, in characters
_MESSAGE = 300
_MANY = 50  # conditions, taints or roles of one node
_AWAY = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
_ROLE = "node-role.kubernetes.io/"
_STORAGE_DEFAULT = ("storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class")
_INGRESS_DEFAULT = ("ingressclass.kubernetes.io/is-default-class",)

Seen = Callable[[int], None]
Json = dict[str, Any]


async def uid(cluster: KubernetesClient) -> str:
    """The cluster's identity: the UID of kube-system, which lives and dies with the cluster's store."""
    answer = await cluster.request("GET", f"/api/v1/namespaces/{IDENTITY_NAMESPACE}")
    found = _line(_mapping(answer, "metadata").get("uid"))
    if not found:
        raise faults.not_kubernetes(cluster.server)
    return found


async def nodes(cluster: KubernetesClient, seen: Seen | None = None) -> list[NodeFacts]:
    """All nodes, sorted by name. `seen` is told how many have been read so far."""
    found: list[NodeFacts] = []
    async for item in cluster.items("/api/v1/nodes"):
        found.append(node(item))
        if seen is not None and len(found) % cluster.limits.page == 0:
            seen(len(found))
    return sorted(found, key=lambda one: one.name)


async def recent_nodes(cluster: KubernetesClient) -> list[NodeFacts]:
    """The same as at most a few seconds ago, for deploys, which may come by the hundred; not to be changed."""
    return await cluster.recent_nodes.get(lambda: nodes(cluster))


async def inspect(
    cluster: KubernetesClient,
    version: ServerVersion,
    missing: list[Permission] | None = None,
    seen: Seen | None = None,
    *,
    recent: bool = False,
) -> ClusterInspection:
    """Everything about the cluster that Stepway keeps. Raises `Permanent` and `Retry` as the client does.

    `recent`: the nodes may be those of a moment ago.
    """
    return ClusterInspection(
        version=version,
        uid=await uid(cluster),
        nodes=await (recent_nodes(cluster) if recent else nodes(cluster, seen)),
        storage_classes=[
            _storage_class(item) async for item in cluster.items("/apis/storage.k8s.io/v1/storageclasses")
        ],
        ingress_classes=[
            _ingress_class(item) async for item in cluster.items("/apis/networking.k8s.io/v1/ingressclasses")
        ],
        gateways=await gateways(cluster),
        runtime_classes=[
            RuntimeClassFacts(name=_name(item), handler=_line(item.get("handler")) or "")
            async for item in cluster.items("/apis/node.k8s.io/v1/runtimeclasses")
        ],
        missing_permissions=missing or [],
        inspected_at=clock.now(),
    )


async def gateways(cluster: KubernetesClient) -> list[GatewayFacts]:
    """Those in our namespace that take routes for HTTP; none where the cluster has no such kind, or does not show it."""
    try:
        found = await Objects(cluster).list("Gateway")
    except Refused as refusal:
        if refusal.status == 403:  # `permissions.OPTIONAL`
            return []
        raise
    known = (gateway(item) for item in found.items)
    return sorted((one for one in known if one.hosts), key=lambda one: one.name)


def gateway(item: Json) -> GatewayFacts:
    """One object of kind Gateway."""
    spec = _mapping(item, "spec")
    listeners = [one for one in _listed(spec, "listeners") if _takes_our_routes(one)]
    return GatewayFacts(
        name=_name(item),
        gateway_class=_line(spec.get("gatewayClassName")) or "",
        hosts=sorted({_line(one.get("hostname")) or "*" for one in listeners}),
    )


def _takes_our_routes(listener: Json) -> bool:
    allowed = _mapping(listener, "allowedRoutes")
    kinds = [one.get("kind") for one in _listed(allowed, "kinds")]
    return (
        listener.get("protocol") in ("HTTP", "HTTPS")
        and _mapping(allowed, "namespaces").get("from", "Same") in ("Same", "All")
        and (not kinds or "HTTPRoute" in kinds)
    )


def node(item: Json) -> NodeFacts:
    """One object of kind Node."""
    spec, status, labels = _mapping(item, "spec"), _mapping(item, "status"), _labels(item)
    capacity, allocatable, info = (_mapping(status, key) for key in ("capacity", "allocatable", "nodeInfo"))
    conditions = [_condition(one) for one in _listed(status, "conditions")]
    taints = [_taint(one) for one in _listed(spec, "taints")]
    ready = any(one.type == "Ready" and one.status == "True" for one in conditions)
    away = not ready or any(one.key in _AWAY for one in taints)
    return NodeFacts(
        name=_name(item),
        ready=ready,
        away_since=_changed(status) if away else None,
        schedulable=spec.get("unschedulable") is not True,
        roles=sorted(name.removeprefix(_ROLE)[:63] for name in labels if name.startswith(_ROLE))[:_MANY],
        conditions=conditions,
        taints=taints,
        cpu_millis=thousandths(capacity.get("cpu")),
        cpu_millis_allocatable=thousandths(allocatable.get("cpu")),
        memory=whole(capacity.get("memory")),
        memory_allocatable=whole(allocatable.get("memory")),
        storage_allocatable=whole(allocatable.get("ephemeral-storage")),
        pods_allocatable=whole(allocatable.get("pods")),
        gpus=gpus_of(allocatable, labels),
        kubelet_version=_line(info.get("kubeletVersion")),
        runtime=_line(info.get("containerRuntimeVersion")),
        os=_line(info.get("operatingSystem")),
        architecture=_line(info.get("architecture")),
        instance_type=_line(labels.get("node.kubernetes.io/instance-type")),
        zone=_line(labels.get("topology.kubernetes.io/zone")),
    )


def _changed(status: Json) -> datetime | None:
    """When the node became ready, or ceased to be."""
    changes = [one.get("lastTransitionTime") for one in _listed(status, "conditions") if one.get("type") == "Ready"]
    return moment(changes[0]) if changes else None


def _condition(one: Json) -> NodeCondition:
    return NodeCondition(
        type=_line(one.get("type")) or "",
        status=_line(one.get("status")) or "Unknown",
        reason=_line(one.get("reason")),
        message=_line(one.get("message"), _MESSAGE),
    )


def _taint(one: Json) -> Taint:
    return Taint(key=_line(one.get("key")) or "", value=_line(one.get("value")), effect=_line(one.get("effect")) or "")


def _storage_class(item: Json) -> StorageClassFacts:
    return StorageClassFacts(
        name=_name(item),
        provisioner=_line(item.get("provisioner")) or "",
        default=_is_default(item, _STORAGE_DEFAULT),
        expandable=item.get("allowVolumeExpansion") is True,
        binding=_line(item.get("volumeBindingMode")),
    )


def _ingress_class(item: Json) -> IngressClassFacts:
    controller = _line(_mapping(item, "spec").get("controller")) or ""
    return IngressClassFacts(name=_name(item), controller=controller, default=_is_default(item, _INGRESS_DEFAULT))


# the server's JSON, of which nothing is certain


def _mapping(item: Json, key: str) -> Json:
    value = item.get(key)
    return value if isinstance(value, dict) else {}


def _listed(item: Json, key: str) -> list[Json]:
    value = item.get(key)
    return [one for one in value[:_MANY] if isinstance(one, dict)] if isinstance(value, list) else []


def _line(value: object, length: int = _LINE) -> str | None:
    """Printable text of a bounded length, or None."""
    if not isinstance(value, str) or not value:
        return None
    return "".join(char if char.isprintable() else " " for char in value[:length])


def _name(item: Json) -> str:
    return _line(_mapping(item, "metadata").get("name")) or ""


def _labels(item: Json) -> dict[str, str]:
    labels = _mapping(_mapping(item, "metadata"), "labels")
    return {name: text for name, value in labels.items() if (text := _line(value))} | {
        name: "" for name, value in labels.items() if value == "" and name.startswith(_ROLE)
    }


def _is_default(item: Json, names: tuple[str, ...]) -> bool:
    annotations = _mapping(_mapping(item, "metadata"), "annotations")
    return any(annotations.get(name) == "true" for name in names)
