"""What services ask of each other. In one process a direct call; between services, through a sidecar.

The ledger of jobs has ports of its own, in `shared.jobs.dapr.ports`.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal, Protocol
from uuid import UUID

from shared.contracts.clusters import Orphan, WatchedCluster
from shared.contracts.deployments import DeploySpec, ExpectedEndpoint
from shared.contracts.gateway import Admitted, PublishedTable, Shown
from shared.contracts.models import ModelFile
from shared.contracts.previews import DeployPreview
from shared.contracts.reach import ClusterAccess


class AppPort(Protocol):
    """Every call names the job that it is for; the app refuses what is not that job's business.

    Secrets are asked for at the moment of use and never kept. Faults are `Permanent` or `Retry`.
    """

    async def credential(self, job_id: UUID, credential_id: UUID) -> dict[str, str]:
        """The secret and other fields of a credential that the job's input names."""

    async def provider_parameters(self, job_id: UUID, credential_id: UUID) -> dict[str, str]:
        """The same credential as LiteLLM takes it: `{parameter: value}`."""

    async def kubeconfig(self, job_id: UUID, cluster_id: UUID) -> bytes:
        """The checked, canonical kubeconfig of a cluster: the new one, for the job that tries new credentials."""

    async def worker_key(self, job_id: UUID, endpoint_id: UUID) -> str:
        """The key with which the gateway speaks to the endpoint's workers."""

    async def check_gate(self, job_id: UUID, model_id: UUID, project_id: UUID, digest: str | None) -> None:
        """Refuse (`scan_required`, `scan_blocked`) to deploy files that the project's policy does not let through."""

    async def admit_bytes(self, job_id: UUID, project_id: UUID | None, size: int) -> None:
        """Refuse (`quota_exceeded`) an import that the project has no room for."""

    async def claim_files(self, job_id: UUID, model_id: UUID, files: Sequence[ModelFile], manifest: str | None) -> None:
        """Keep files, and the manifest of this digest, from being freed; then look whether they are there.

        Refused (`model_gone`) when the model is not being imported any more.
        """

    async def claim_cluster(self, job_id: UUID, cluster_id: UUID, uid: str) -> None:
        """Record what a cluster is known by; refuse one that is registered already (`cluster_known`) and, of a cluster
        that is known, another one (`cluster_is_another`)."""

    async def known_endpoints(self, job_id: UUID, cluster_id: UUID) -> list[str]:
        """The ids of all endpoints that may have something on the cluster."""

    async def cluster_kind(self, cluster_id: UUID) -> str:
        """`local` or `kubernetes`."""

    async def cluster_ingress(self, cluster_id: UUID) -> str | None:
        """Where requests from outside enter the cluster, if somebody has said so."""

    async def publish(self, job_id: UUID, endpoint_id: UUID, observation: dict[str, Any]) -> None:
        """Show what the job has just seen of its endpoint, before the observer's next look."""


EndpointNews = Literal["healed", "heal_failed"]


class ObserverPort(Protocol):
    """What a cluster's observer may ask of the app. Every call carries the epoch of its lease; an older one is refused.

    Where nothing else is said, a refusal is `Permanent` (`stale_epoch`, `cluster_gone`).
    """

    async def clusters(self) -> list[WatchedCluster]:
        """The registered clusters that are to be watched, without this machine. Whoever asks, without a lease."""

    async def cluster_kubeconfig(self, cluster_id: UUID, epoch: int) -> bytes:
        """The checked, canonical kubeconfig of the cluster."""

    async def observe(self, cluster_id: UUID, epoch: int, observations: list[dict[str, Any]]) -> bool:
        """Take what the cluster's observer sees; False when another observer has a newer epoch."""

    async def observe_some(self, cluster_id: UUID, epoch: int, seen: Mapping[str, dict[str, Any] | None]) -> bool:
        """The same of these endpoints only; None: nothing is there."""

    async def reachable(self, cluster_id: UUID, epoch: int, fault: str | None) -> bool:
        """Whether the cluster can be looked at: `fault` says in a sentence why not. False as `observe`.

        Its endpoints are marked with a fault until `observe` or `observe_some` tells of them again.
        """

    async def inspected(self, cluster_id: UUID, epoch: int, facts: dict[str, Any]) -> bool:
        """Take what the cluster is made of now. False as `observe`."""

    async def tell(self, cluster_id: UUID, epoch: int, endpoint_id: UUID, news: EndpointNews, message: str) -> None:
        """Add to the events of an endpoint what the observer has done."""

    async def expected(
        self, cluster_id: UUID, epoch: int, endpoint_id: UUID | None = None
    ) -> list[ExpectedEndpoint] | None:
        """Every endpoint, or this one, that has or may have something on the cluster; None when the epoch is old."""

    async def endpoint_key(self, cluster_id: UUID, epoch: int, endpoint_id: UUID) -> str:
        """The key for the workers of an endpoint that the cluster should serve."""

    async def endpoint_parameters(self, cluster_id: UUID, epoch: int, endpoint_id: UUID) -> dict[str, str]:
        """What LiteLLM takes of such an endpoint's credential: `{parameter: value}`, empty without one."""


class ReachPort(Protocol):
    """What the app asks the cluster service about a cluster that it lets it into. Faults are `Permanent` or `Retry`."""

    def lines(
        self, access: ClusterAccess, endpoint_id: UUID, ordinal: int | None, tail: int, follow: bool
    ) -> AsyncIterator[str]:
        """Lines of one worker or of all, oldest first; with `follow` also each new one."""

    async def leftovers(self, access: ClusterAccess) -> list[Orphan]:
        """All endpoints of which something of this installation is on the cluster."""

    async def identity(self, kubeconfig: bytes) -> str | None:
        """The UID of a cluster that is not registered yet; None where it does not tell it within a few seconds."""

    async def preview(self, access: ClusterAccess, spec: DeploySpec, parameters: list[str]) -> DeployPreview:
        """What the deployment would be. `parameters` are the names of what its credential gives."""


class GatewayPort(Protocol):
    """What a gateway asks of the app. Refusals are `Problem`s."""

    async def routes(self, seen: str | None) -> PublishedTable:
        """The table; one whose version was `seen` is held for about two seconds, for it may change."""

    async def admit(self, shown: Shown, endpoint_id: UUID) -> Admitted:
        """Who may use an endpoint. Raises `unauthenticated`, `forbidden`, `origin_not_allowed`, and `not_found` for an
        endpoint that does not exist and, in the same words, for one that the caller may not see."""
