"""The flow service: drives executions of flows. It has no tables: it asks the app."""

from starlette.types import ASGIApp

from services.distributed.drives import Drives
from services.distributed.parts import Parts, scratch_of
from services.flow.jobs import JOBS
from services.flow.tools import FlowTools
from shared.contracts.flows import FlowPort
from shared.contracts.ports import AppPort
from shared.jobs.declare import Registry
from shared.objects.opened import open_store
from shared.rpc.server import Served
from shared.telemetry.probes import Health


class FlowService:
    public: ASGIApp | None = None

    def __init__(self, parts: Parts) -> None:
        objects = open_store(parts.settings, scratch_of(parts.settings))
        registry = Registry()
        registry.add(JOBS, FlowTools(parts.app(AppPort), parts.app(FlowPort), objects, parts.settings))
        self._drives = Drives(parts, registry)
        self.ports: list[Served] = self._drives.ports

    async def start(self, health: Health) -> None:
        await self._drives.start(health)

    async def stop(self, seconds: float) -> None:
        await self._drives.stop()
