"""The cluster service: drives the jobs about clusters, watches them, and answers what requests ask of them."""

import asyncio

from starlette.types import ASGIApp

from services.cluster.jobs import JOBS
from services.cluster.jobs.tools import ClusterTools
from services.cluster.reach import Reach
from services.cluster.sites.clients import Clients
from services.cluster.watch.watches import Watches
from services.cluster.watch.world import World
from services.distributed.drives import Drives
from services.distributed.parts import Parts, scratch_of
from shared.contracts.ports import AppPort, ObserverPort, ReachPort
from shared.jobs.declare import Registry
from shared.objects.opened import open_store
from shared.rpc.identity import APP
from shared.rpc.server import Served
from shared.telemetry.metrics import Read
from shared.telemetry.probes import Health


class ClusterService:
    public: ASGIApp | None = None

    def __init__(self, parts: Parts) -> None:
        objects = open_store(parts.settings, scratch_of(parts.settings))
        self._clients = Clients()
        tools = ClusterTools(parts.app(AppPort), objects, parts.settings, None, self._clients)
        registry = Registry()
        registry.add(JOBS, tools)
        watched = Read("stepway_cluster_watches", "Clusters that this process watches.", "state", self._watch_states)
        self._drives = Drives(parts, registry, watched)
        world = World(
            parts.app(ObserverPort), self._clients, tools.addresses, objects, parts.settings, watchers=tools.watchers
        )  # fmt: skip
        self._watches = Watches(world, self._drives.hold, asyncio.Event)  # it looks again by itself
        self._watching: asyncio.Task[None] | None = None
        self.ports = [*self._drives.ports, Served(ReachPort, Reach(tools), frozenset({APP}))]

    async def start(self, health: Health) -> None:
        await self._drives.start(health)
        self._watching = asyncio.create_task(self._watches.run(), name="cluster-watches")

    async def stop(self, seconds: float) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._drives.stop()
        await self._clients.aclose()

    def _watch_states(self) -> dict[str, int]:
        return self._watches.states()
