"""Clusters as the services pass them to each other: what a kubeconfig says, without secrets, and what was found.

Sizes are bytes, CPU is in thousandths of a core. Text that a cluster chose is cut to a bounded length.
"""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field

AuthKind = Literal["token", "client_certificate", "client_certificate_and_token"]


class KubeconfigSummary(BaseModel):
    """What may be shown of a kubeconfig. `ca_fingerprint` is the SHA-256 of the first CA certificate, as colon hex."""

    server: str  # host and port
    context: str
    auth: AuthKind
    credentials_expire_at: datetime | None = None  # of the client certificate or of the token, the earlier one
    ca_expires_at: datetime | None = None
    ca_fingerprint: str | None = None  # null: the authorities that the system trusts
    tls_server_name: str | None = None
    verifies_tls: bool = True


class ServerVersion(BaseModel):
    """What GET /version says."""

    version: str  # e.g. v1.34.4
    major: int
    minor: int
    platform: str | None = None  # e.g. linux/amd64


class Permission(BaseModel):
    """One verb on one resource. `namespace` null: in the whole cluster; `name` null: on any object."""

    verb: str
    resource: str  # plural, with its subresource: pods/log
    group: str = ""
    namespace: str | None = None
    name: str | None = None

    def __str__(self) -> str:
        resource = f"{self.resource}.{self.group}" if self.group else self.resource
        target = f"{resource} {self.name}" if self.name else resource
        return f"{self.verb} {target}" + (f" in namespace {self.namespace}" if self.namespace else " in the cluster")


class NodeCondition(BaseModel):
    type: str
    status: str  # True, False, Unknown
    reason: str | None = None
    message: str | None = None


class Taint(BaseModel):
    key: str
    value: str | None = None
    effect: str


class NodeGpu(BaseModel):
    """GPUs of one resource on one node. `product` and `memory` (of one GPU) come from labels; unknown is null."""

    resource: str  # e.g. nvidia.com/gpu
    count: int = Field(ge=0)  # that pods may have
    product: str | None = None
    memory: int | None = None


class NodeFacts(BaseModel):
    name: str
    ready: bool
    away_since: datetime | None = None  # while it is not ready, or the cluster has not let it be used again yet
    schedulable: bool  # false when cordoned
    roles: list[str] = Field(default_factory=list)
    conditions: list[NodeCondition] = Field(default_factory=list)
    taints: list[Taint] = Field(default_factory=list)
    cpu_millis: int = 0  # capacity
    cpu_millis_allocatable: int = 0
    memory: int = 0  # capacity
    memory_allocatable: int = 0
    storage_allocatable: int = 0  # ephemeral
    pods_allocatable: int = 0
    gpus: list[NodeGpu] = Field(default_factory=list)
    kubelet_version: str | None = None
    runtime: str | None = None
    os: str | None = None
    architecture: str | None = None
    instance_type: str | None = None
    zone: str | None = None


class StorageClassFacts(BaseModel):
    name: str
    provisioner: str
    default: bool = False
    expandable: bool = False
    binding: str | None = None  # Immediate, WaitForFirstConsumer


class IngressClassFacts(BaseModel):
    name: str
    controller: str
    default: bool = False


class GatewayFacts(BaseModel):
    """A Gateway in our namespace, to which routes of ours may attach. `hosts` are those of its listeners for HTTP."""

    name: str
    gateway_class: str
    hosts: list[str] = Field(default_factory=list)  # a name, *.and.what.it.ends.with, or * for any

    def takes(self, host: str) -> bool:
        return any(one in ("*", host) or (one.startswith("*.") and host.endswith(one[1:])) for one in self.hosts)


class RuntimeClassFacts(BaseModel):
    name: str
    handler: str


class GpuTotal(BaseModel):
    """GPUs of one kind on nodes that are ready and schedulable."""

    resource: str
    product: str | None = None
    memory: int | None = None
    count: int = 0
    nodes: int = 0


class ClusterTotals(BaseModel):
    """A cluster in a few numbers. CPU, memory and GPUs count what is allocatable on ready, schedulable nodes."""

    nodes: int = 0
    nodes_usable: int = 0
    cpu_millis: int = 0
    memory: int = 0
    gpus: list[GpuTotal] = Field(default_factory=list)


class ClusterInspection(BaseModel):
    """What was found in a cluster. About 1 KB of JSON per node."""

    version: ServerVersion
    uid: str  # of the namespace kube-system: the cluster's identity
    nodes: list[NodeFacts] = Field(default_factory=list)
    storage_classes: list[StorageClassFacts] = Field(default_factory=list)
    ingress_classes: list[IngressClassFacts] = Field(default_factory=list)
    gateways: list[GatewayFacts] = Field(default_factory=list)
    runtime_classes: list[RuntimeClassFacts] = Field(default_factory=list)
    missing_permissions: list[Permission] = Field(default_factory=list)
    inspected_at: datetime

    @property
    def default_storage_class(self) -> str | None:
        return next((one.name for one in self.storage_classes if one.default), None)

    def totals(self) -> ClusterTotals:
        usable = [node for node in self.nodes if node.ready and node.schedulable]
        gpus: dict[tuple[str, str | None, int | None], GpuTotal] = {}
        for node in usable:
            for gpu in node.gpus:
                kind = (gpu.resource, gpu.product, gpu.memory)
                total = gpus.setdefault(kind, GpuTotal(resource=gpu.resource, product=gpu.product, memory=gpu.memory))
                total.count += gpu.count
                total.nodes += 1
        return ClusterTotals(
            nodes=len(self.nodes),
            nodes_usable=len(usable),
            cpu_millis=sum(node.cpu_millis_allocatable for node in usable),
            memory=sum(node.memory_allocatable for node in usable),
            gpus=list(gpus.values()),
        )


class WatchedCluster(BaseModel):
    """A registered cluster as its observers need it. `access` changes with its kubeconfig, and says nothing of it."""

    id: UUID
    access: str
    uid: str | None = None  # of its kube-system; another cluster at its address is not it
    ingress_url: str | None = None
    heal: bool  # whether what others delete or change of ours is put right
    inspected_at: datetime | None = None


class ClusterSpec(BaseModel):
    """The input of jobs about a cluster; its kubeconfig is asked for by its id."""

    cluster_id: UUID
    name: str


class Registered(BaseModel):
    """What was found out about a cluster."""

    uid: str
    version: str
    facts: dict[str, Any]


class CredentialsChecked(Registered):
    """New credentials do what they must. `access` is what may be shown of them, a `KubeconfigSummary`."""

    access: dict[str, Any]


class EndpointsRemoved(BaseModel):
    """Endpoints of which nothing is on the cluster any more, by their ids."""

    cluster_id: UUID
    endpoints: list[str] = Field(default_factory=list)


class Orphan(BaseModel):
    """What a cluster has of an endpoint that this installation does not know (any more)."""

    endpoint_id: str
    job: str | None = None
    created_at: str | None = None
    objects: list[str]  # Kind/name
