"""This machine as a site: engines run as processes, and find the model's files as links into the object store."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import UUID

from pydantic import SecretStr

from services.cluster.engines.base import DeployConfig, EnginePlan, ModelSource
from services.cluster.engines.registry import engine_for
from services.cluster.runtimes.base import Capacity, InsufficientCapacity, Progress, Workload
from services.cluster.runtimes.local.runtime import LocalRuntime
from services.cluster.sites import files
from services.cluster.sites.base import Planned, count_of, silent
from services.cluster.sites.manifest import manifest_of
from shared.contracts.deployments import DeploySpec
from shared.contracts.previews import Needs, Preview, Room
from shared.jobs.outcomes import Permanent
from shared.objects.store import ObjectStore

_HERE = "{model}"  # stands in a plan for the folder of the model's files: a backup may be restored in another place


class LocalSite:
    """`id` is this machine's as a cluster, `models` the folder in which workers find the files that they serve."""

    def __init__(self, cluster_id: UUID, runtime: LocalRuntime, models: Path, objects: ObjectStore) -> None:
        self.id = cluster_id
        self.runtime = runtime
        self.models = models
        self._objects = objects

    async def plan(
        self, spec: DeploySpec, *, parameters: Sequence[str] = (), dry: bool = False, on_progress: Progress = silent
    ) -> EnginePlan:
        if spec.digest is None:
            raise Permanent(
                "engine_unsupported", "This machine runs no proxy to cloud models; deploy it to a Kubernetes cluster."
            )
        manifest = await manifest_of(self._objects, spec)
        engine = engine_for(manifest.files, spec.metadata)
        lacking = await engine.preflight()
        if lacking is not None:
            raise Permanent("engine_unavailable", lacking)
        source = ModelSource(name=spec.name, directory=Path(_HERE), files=manifest.files, metadata=spec.metadata)
        facts = await self.runtime.inspect()
        return engine.plan(source, DeployConfig.of(spec.config), cpus=facts.nodes[0].cpus, tuning=spec.tuning)

    async def workload(
        self,
        spec: DeploySpec,
        plan: Planned,
        *,
        key: str | None,
        replicas: int | None = None,
        job: UUID | None = None,
        secrets: Mapping[str, SecretStr] | None = None,
    ) -> Workload:
        if not isinstance(plan, EnginePlan):
            raise Permanent("runtime_unsupported", "This machine runs processes, and this is a container.")
        folder = str(self.folder(spec.endpoint_id, spec.digest))
        process = plan.process.model_copy(update={"argv": [one.replace(_HERE, folder) for one in plan.process.argv]})
        return Workload(
            endpoint_id=str(spec.endpoint_id), generation=spec.generation, process=process,
            replicas=count_of(plan, replicas), memory_bytes=plan.memory_bytes,
            threads=plan.threads, api_key=SecretStr(key) if key else None,
        )  # fmt: skip

    async def check(self, workload: Workload) -> None:
        await self.runtime.check_capacity(workload)

    async def preview(self, workload: Workload) -> Preview:
        needs = Needs(
            workers=workload.replicas, cpu_millis=1000 * workload.replicas * workload.threads,
            memory_bytes=workload.replicas * workload.memory_bytes,
        )  # fmt: skip
        capacity = await self.runtime.capacity()
        problem: InsufficientCapacity | None = None
        try:
            await self.runtime.check_capacity(workload)
        except InsufficientCapacity as lacking:
            problem = lacking
        return Preview(
            needs=needs, capacity=_rooms(capacity, needs), places=_places(capacity, workload),
            problems=[problem.message] if problem else [], code=problem.code if problem else None,
        )  # fmt: skip

    async def check_more(self, endpoint_id: UUID, before: int, after: int, memory_bytes: int) -> None:
        capacity = await self.runtime.capacity()
        seen = (await self.runtime.observe()).get(str(endpoint_id))
        more = max(after - (seen.replicas if seen else before), 0)
        free = capacity.memory_bytes - capacity.memory_promised_bytes
        if more * memory_bytes > free:
            needed = f"{more} more workers need {more * memory_bytes // 2**20} MiB"
            raise Permanent(
                "insufficient_capacity", f"{needed} of memory; {max(free, 0) // 2**20} MiB are not promised yet."
            )

    async def bring(self, spec: DeploySpec, workload: Workload, on_progress: Progress) -> None:
        manifest = await manifest_of(self._objects, spec)
        await files.bring(manifest, self.folder(spec.endpoint_id, spec.digest), self._objects, on_progress)

    async def forget(self, endpoint_id: UUID, digest: str | None = None) -> None:
        await files.forget(self.folder(endpoint_id, digest))

    def transport(self) -> None:
        return None

    def folder(self, endpoint_id: UUID, digest: str | None = None) -> Path:
        """An endpoint's, or in it that of one digest: while an update runs there are two."""
        folder = self.models / str(endpoint_id)
        return folder / digest[:16] if digest else folder


def _rooms(capacity: Capacity, needs: Needs) -> list[Room]:
    threads = needs.cpu_millis // 1000
    return [
        Room(
            of="machine", resource="memory", limit=str(capacity.memory_bytes), used=str(capacity.memory_promised_bytes),
            needed=str(needs.memory_bytes),
            fits=needs.memory_bytes <= _free_memory(capacity),
        ),
        Room(
            of="machine", resource="cpu", limit=str(capacity.threads), used=str(capacity.threads_promised),
            needed=str(threads), fits=threads <= capacity.threads - capacity.threads_promised,
        ),
    ]  # fmt: skip


def _places(capacity: Capacity, workload: Workload) -> int:
    threads = capacity.threads - capacity.threads_promised
    return max(0, min(_free_memory(capacity) // workload.memory_bytes, threads // workload.threads))


def _free_memory(capacity: Capacity) -> int:
    """Bytes that are neither promised to others nor in use on the machine."""
    return min(capacity.memory_bytes - capacity.memory_promised_bytes, capacity.memory_available_bytes)
