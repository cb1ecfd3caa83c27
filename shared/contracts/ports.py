"""What a worker service may ask of the app. In one process a direct call; between services, through a sidecar."""

from typing import Any, Protocol
from uuid import UUID

from shared.contracts.deployments import ExpectedEndpoint


class AppPort(Protocol):
    """Every call names the job that it is for; the app refuses what is not that job's business.

    Secrets are asked for at the moment of use and never kept. Faults are `Permanent` or `Retry`.
    """

    async def credential(self, job_id: UUID, credential_id: UUID) -> dict[str, str]:
        """The secret and other fields of a credential that the job's input names."""

    async def provider_parameters(self, job_id: UUID, credential_id: UUID) -> dict[str, str]:
        """The same credential as LiteLLM takes it: `{parameter: value}`."""

    async def kubeconfig(self, job_id: UUID, cluster_id: UUID) -> bytes:
        """The checked, canonical kubeconfig of a cluster."""

    async def worker_key(self, job_id: UUID, endpoint_id: UUID) -> str:
        """The key with which the gateway speaks to the endpoint's workers."""

    async def check_gate(self, job_id: UUID, model_id: UUID, project_id: UUID, digest: str | None) -> None:
        """Refuse (`scan_required`, `scan_blocked`) to deploy files that the project's policy does not let through."""

    async def admit_bytes(self, job_id: UUID, project_id: UUID | None, size: int) -> None:
        """Refuse (`quota_exceeded`) an import that the project has no room for."""

    async def claim_cluster(self, job_id: UUID, cluster_id: UUID, uid: str) -> None:
        """Record what a cluster is known by; refuse (`cluster_known`) one that is registered already."""

    async def cluster_kind(self, cluster_id: UUID) -> str:
        """`local` or `kubernetes`."""

    async def publish(self, job_id: UUID, endpoint_id: UUID, observation: dict[str, Any]) -> None:
        """Show what the job has just seen of its endpoint, before the observer's next look."""


class ObserverPort(Protocol):
    """What a cluster's observer may ask of the app. Every call carries the epoch of its lease; an older one is refused."""

    async def observe(self, cluster_id: UUID, epoch: int, observations: list[dict[str, Any]]) -> bool:
        """Take what the cluster's observer sees; False when another observer has a newer epoch."""

    async def expected(self, cluster_id: UUID, epoch: int) -> list[ExpectedEndpoint] | None:
        """Every endpoint that has or may have something on the cluster; None when another observer has a newer epoch."""

    async def endpoint_key(self, cluster_id: UUID, epoch: int, endpoint_id: UUID) -> str:
        """The key for the workers of an endpoint that the cluster should serve."""
