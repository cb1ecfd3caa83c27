"""What the steps of the cluster service reach the world with."""

from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from services.cluster.runtimes.base import Runtime
from services.cluster.runtimes.local.runtime import LocalRuntime
from shared.contracts.models import Manifest
from shared.contracts.ports import AppPort
from shared.jobs.outcomes import Permanent
from shared.objects.store import ObjectStore, manifest_key
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class ClusterTools:
    """`models` is the folder of this machine in which workers find the files that they serve, `machine` its cluster's id."""

    app: AppPort
    objects: ObjectStore
    settings: Settings
    local: LocalRuntime
    models: Path
    machine: UUID

    async def runtime(self, cluster_id: UUID) -> Runtime:
        """The runtime of a cluster. Kubernetes has none yet: registered clusters are inspected, not deployed to."""
        kind = await self.app.cluster_kind(cluster_id)
        if kind == "local" and cluster_id == self.machine:
            return self.local
        if kind == "local":
            raise Permanent(
                "runtime_elsewhere",
                "This cluster is another machine. Processes that share a database deploy to the machine that they share.",
            )
        raise Permanent("runtime_unsupported", "This version deploys to this machine only; choose it as the cluster.")

    async def manifest(self, digest: str) -> Manifest:
        return Manifest.model_validate_json(await self.objects.get(manifest_key(digest)))

    def model_folder(self, endpoint_id: UUID) -> Path:
        return self.models / str(endpoint_id)
