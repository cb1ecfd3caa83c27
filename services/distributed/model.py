"""The model service: drives the jobs that bring models and scan them. It has no tables: it asks the app."""

from starlette.types import ASGIApp

from services.distributed.drives import Drives
from services.distributed.parts import Parts, scratch_of
from services.model.jobs import JOBS
from services.model.jobs.tools import ModelTools
from shared.contracts.ports import AppPort
from shared.jobs.declare import Registry
from shared.objects.opened import open_store
from shared.rpc.server import Served
from shared.telemetry.probes import Health


class ModelService:
    public: ASGIApp | None = None

    def __init__(self, parts: Parts) -> None:
        objects = open_store(parts.settings, scratch_of(parts.settings))
        registry = Registry()
        registry.add(JOBS, ModelTools(parts.app(AppPort), objects, parts.settings))
        self._drives = Drives(parts, registry)
        self.ports: list[Served] = self._drives.ports

    async def start(self, health: Health) -> None:
        await self._drives.start(health)

    async def stop(self, seconds: float) -> None:
        await self._drives.stop()
