"""What the steps of the cluster service reach the world with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from pydantic import SecretStr

from services.cluster.runtimes.kubernetes.runtime import KubernetesRuntime
from services.cluster.runtimes.kubernetes.watcher import Watcher
from services.cluster.sites.base import Site
from services.cluster.sites.clients import Clients
from services.cluster.sites.kubernetes import KubernetesSite, Reached
from services.cluster.sites.local import LocalSite
from shared.contracts.deployments import DeploySpec
from shared.contracts.ports import AppPort
from shared.jobs.outcomes import Permanent
from shared.objects.store import ObjectStore
from shared.security.kubeconfig_server import ServerPolicy
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class ClusterTools:
    """`machine` is this one, where it is a cluster; `clients` are the connections to all other clusters.

    `watchers` follow the clusters of which this process has the watch: who waits for workers need not do so again.
    """

    app: AppPort
    objects: ObjectStore
    settings: Settings
    machine: LocalSite | None
    clients: Clients = field(default_factory=Clients)
    reached: Reached = field(default_factory=dict)
    watchers: dict[UUID, Watcher] = field(default_factory=dict)

    async def site(self, job_id: UUID, cluster_id: UUID) -> Site:
        """The cluster for a job whose input names it. Raises Permanent (`cluster_gone`, `runtime_elsewhere`)."""
        kind = await self.app.cluster_kind(cluster_id)
        if kind == "kubernetes":
            kubeconfig = await self.app.kubeconfig(job_id, cluster_id)
            return self.kubernetes(cluster_id, kubeconfig, await self.app.cluster_ingress(cluster_id))
        if not self.is_local(cluster_id):
            raise _elsewhere()
        return self.local

    def is_local(self, cluster_id: UUID) -> bool:
        """Whether it is this machine."""
        return self.machine is not None and self.machine.id == cluster_id

    @property
    def local(self) -> LocalSite:
        """This machine. Raises Permanent (`runtime_elsewhere`) where it is no cluster."""
        if self.machine is None:
            raise _elsewhere()
        return self.machine

    async def site_if_known(self, job_id: UUID, cluster_id: UUID) -> Site | None:
        """None where the cluster is not registered any more: nothing can be removed from it, and nothing need be."""
        try:
            return await self.site(job_id, cluster_id)
        except Permanent as fault:
            if fault.code != "cluster_gone":
                raise
            return None

    def kubernetes(self, cluster_id: UUID, kubeconfig: bytes, ingress_url: str | None) -> KubernetesSite:
        """A cluster by its kubeconfig; the connection is shared."""
        client = self.clients.client(cluster_id, kubeconfig, self.addresses)
        watcher = self.watchers.get(cluster_id)
        following = watcher is not None and watcher.synced.is_set()
        runtime = KubernetesRuntime(client, str(cluster_id), watcher if following else None)
        return KubernetesSite(runtime, self.settings, self.objects, ingress_url, self.reached)

    @property
    def addresses(self) -> ServerPolicy:
        """Where clusters may be."""
        return ServerPolicy.of(self.settings)

    async def parameters(self, job_id: UUID, spec: DeploySpec) -> Mapping[str, SecretStr]:
        """The LiteLLM parameters of a cloud model's credential, by name: asked for at the moment of use, never kept."""
        if spec.credential_id is None:
            return {}
        found = await self.app.provider_parameters(job_id, spec.credential_id)
        return {name: SecretStr(value) for name, value in found.items()}


def _elsewhere() -> Permanent:
    return Permanent(
        "runtime_elsewhere",
        "This cluster is another machine. Processes that share a database deploy to the machine that they share.",
    )
