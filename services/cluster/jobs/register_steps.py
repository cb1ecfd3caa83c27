"""The steps of registering a cluster, as plain functions: connect, check what it is and allows, look at what it has.

Each opens a connection of its own, since steps may run in different processes. They change nothing in the cluster and
may be repeated. The job around them fetches the kubeconfig and saves what they return.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from services.cluster.runtimes.kubernetes import inspect, permissions
from services.cluster.runtimes.kubernetes.client import KubernetesClient, Limits
from shared.contracts.clusters import ClusterInspection, Permission, ServerVersion
from shared.jobs.outcomes import Permanent
from shared.security.kubeconfig import Kubeconfig
from shared.security.kubeconfig_server import ServerPolicy

OLDEST = (1, 27)  # the oldest version whose interfaces the deploy step uses
MAX_NODES = 30  # that are kept one by one: a step's result is bounded
_NAMED = 10  # missing permissions that a sentence names before it only counts

Progress = Callable[[float | None, str | None], None]


class Access(BaseModel):
    """What `check_access` found: the version is supported and nothing that is needed is missing."""

    version: ServerVersion
    uid: str


class PermissionsMissing(Permanent):
    """The account may not do all that is needed. `missing` lists every permission that it lacks."""

    def __init__(self, missing: list[Permission]) -> None:
        named = ", ".join(str(one) for one in missing[:_NAMED])
        more = f", and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        super().__init__("cluster_permissions_missing", f"The account may not: {named}{more}.")
        self.missing = missing


def silent(percent: float | None, message: str | None) -> None:
    """A progress callback for callers who do not ask."""


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach a cluster: what its kubeconfig says, and what this installation allows."""

    kubeconfig: Kubeconfig
    addresses: ServerPolicy = field(default_factory=ServerPolicy)
    limits: Limits = field(default_factory=Limits)

    def open(self) -> KubernetesClient:
        return KubernetesClient(self.kubeconfig, addresses=self.addresses, limits=self.limits)


async def connect(connection: Connection, progress: Progress = silent) -> ServerVersion:
    """Reach the server, with its certificate verified and our credentials accepted, and learn its version."""
    progress(None, f"Connecting to {connection.kubeconfig.summary.server}")
    async with connection.open() as cluster:
        version = await cluster.version()
    progress(100, f"Connected: Kubernetes {version.version}")
    return version


async def check_access(connection: Connection, progress: Progress = silent) -> Access:
    """Check version, identity and permissions. Raises `PermissionsMissing`, or `Permanent` (`cluster_too_old`)."""
    async with connection.open() as cluster:
        version = await cluster.version()
        _check_version(version)
        progress(20, f"Asking for {len(permissions.NEEDED)} permissions")
        missing = await permissions.missing(cluster)
        if missing:
            raise PermissionsMissing(missing)
        found = Access(version=version, uid=await inspect.uid(cluster))
    progress(100, "The version is supported and nothing is missing")
    return found


async def inspect_cluster(connection: Connection, progress: Progress = silent) -> ClusterInspection:
    """Read nodes, GPUs, classes and Gateways."""
    progress(None, "Reading nodes")
    async with connection.open() as cluster:
        version = await cluster.version()
        found = await inspect.inspect(cluster, version, seen=lambda count: progress(None, f"Read {count} nodes"))
    totals = found.totals()
    gpus = sum(gpu.count for gpu in totals.gpus)
    progress(100, f"{totals.nodes_usable} of {totals.nodes} nodes are usable, with {gpus} GPUs")
    return found


def facts_of(found: ClusterInspection) -> dict[str, Any]:
    """What is kept and shown of an inspection: the largest nodes one by one, and all of them in sums."""
    nodes = sorted(found.nodes, key=lambda node: (-node.memory_allocatable, node.name))[:MAX_NODES]
    return {
        **found.model_dump(mode="json", exclude={"nodes", "version"}),
        "version": found.version.version,
        "platform": found.version.platform,
        "totals": found.totals().model_dump(mode="json"),
        "nodes": [node.model_dump(mode="json", exclude_none=True) for node in nodes],
        "node_count": len(found.nodes),
    }


def _check_version(version: ServerVersion) -> None:
    if (version.major, version.minor) < OLDEST:
        oldest = f"{OLDEST[0]}.{OLDEST[1]}"
        raise Permanent("cluster_too_old", f"The cluster runs {version.version}; {oldest} is the oldest that works.")
