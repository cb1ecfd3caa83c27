"""What the services that drive runs have in common: a worker beside its sidecar, its probes and its metrics."""

from services.distributed.parts import BEAT_PATIENCE, LEDGER_PATIENCE, Parts
from shared.jobs.dapr.ports import JobsPort, RunsPort
from shared.jobs.dapr.worker import Worker
from shared.jobs.declare import Registry
from shared.rpc.identity import APP
from shared.rpc.server import Served
from shared.telemetry import metrics
from shared.telemetry.metrics import Read
from shared.telemetry.probes import Health, Readiness


class Drives:
    def __init__(self, parts: Parts, registry: Registry, *more: Read) -> None:
        self._parts = parts
        jobs: JobsPort = parts.app(JobsPort, LEDGER_PATIENCE)
        self._beats: JobsPort = parts.app(JobsPort, BEAT_PATIENCE)
        self.worker = Worker(parts.service, registry, parts.sidecar, jobs, self._beats)
        self.ports = [Served(RunsPort, self.worker, frozenset({APP}))]
        self._readiness = Readiness({"sidecar": parts.sidecar.is_ready, "app": self._joined})
        self._metrics = metrics.registry(*more)

    async def start(self, health: Health) -> None:
        health.starting = "waiting for the sidecar"
        await self._parts.sidecar.wait_ready()
        health.starting = "joining the workflow engine"
        await self.worker.start()
        health.dead, health.missing, health.exposition = self.worker.dead, self._readiness.missing, self._exposition

    async def stop(self) -> None:
        await self.worker.close()

    async def hold(self, name: str) -> int | None:
        """Take or keep a named duty of this service's replicas."""
        return await self._beats.hold(self.worker.process, name)

    async def _joined(self) -> bool:
        return self.worker.joined.is_set()

    async def _exposition(self) -> bytes:
        return metrics.exposition(self._metrics)
