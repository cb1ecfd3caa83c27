"""Keeps one watch per registered cluster, each under its own lease: processes that share a database share the clusters.

Clusters that are registered, deleted or given other credentials are noticed at once, and at the next look. A watch that
ends is begun again after a pause; one whose process dies is another process's at its next look.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

import structlog

from services.cluster.watch.cluster import ClusterWatch
from services.cluster.watch.world import World
from shared.contracts.clusters import WatchedCluster

LOOK_EVERY = 2.0  # seconds
AGAIN_AFTER = 5.0

Hold = Callable[[str], Awaitable[int | None]]
"""Takes or keeps a lease by its name: its epoch, or None while another process has it."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Running:
    watch: ClusterWatch
    task: asyncio.Task[None]


class Watches:
    """`changed` gives an event that is set at the next change of a cluster's row."""

    def __init__(self, world: World, hold: Hold, changed: Callable[[], asyncio.Event]) -> None:
        self._world = world
        self._hold = hold
        self._changed = changed
        self._running: dict[UUID, _Running] = {}
        self._not_before: dict[UUID, float] = {}

    @property
    def watched(self) -> dict[UUID, int]:
        """The clusters that this process watches, with the epoch of each lease."""
        return {one: running.watch.epoch for one, running in self._running.items() if not running.task.done()}

    def states(self) -> dict[str, int]:
        """How many of this process's watches follow their cluster, cannot see it, or have not seen all of it yet."""
        counts = {"following": 0, "cut_off": 0, "starting": 0}
        for one in self.watched:
            watcher = self._world.watchers.get(one)
            if watcher is not None and watcher.fault is not None:
                counts["cut_off"] += 1
            else:
                counts["following" if watcher is not None and watcher.synced.is_set() else "starting"] += 1
        return counts

    async def run(self) -> None:
        try:
            while True:
                changed = self._changed()
                try:
                    await self._look()
                except Exception as error:  # the database is away: what runs goes on
                    log.warning("clusters_not_looked_at", error=f"{type(error).__name__}: {error}"[:300])
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY):
                        await changed.wait()
        finally:
            await asyncio.gather(*(self._stop(one) for one in list(self._running)))

    async def _look(self) -> None:
        known = {one.id: one for one in await self._world.app.clusters()}
        for gone in self._running.keys() - known.keys():
            await self._stop(gone)
            self._world.clients.forget(gone)
        for cluster in known.values():
            await self._keep(cluster, await self._hold(f"cluster:{cluster.id}"))

    async def _keep(self, cluster: WatchedCluster, epoch: int | None) -> None:
        running = self._running.get(cluster.id)
        if running is not None:
            same = (epoch, cluster.access) == (running.watch.epoch, running.watch.cluster.access)
            if same and not running.task.done():
                running.watch.cluster = cluster
                return
            await self._stop(cluster.id)
            if same:  # it has ended by itself
                self._not_before[cluster.id] = asyncio.get_running_loop().time() + AGAIN_AFTER
            else:
                self._not_before.pop(cluster.id, None)
        if epoch is not None and asyncio.get_running_loop().time() >= self._not_before.get(cluster.id, 0.0):
            self._start(cluster, epoch)

    def _start(self, cluster: WatchedCluster, epoch: int) -> None:
        log.info("watches_cluster", cluster=str(cluster.id), epoch=epoch)
        watch = ClusterWatch(cluster, epoch, self._world)
        self._running[cluster.id] = _Running(watch, asyncio.create_task(watch.run(), name=f"watch-{cluster.id}"))

    async def _stop(self, cluster_id: UUID) -> None:
        running = self._running.pop(cluster_id)
        running.task.cancel()
        (ended,) = await asyncio.gather(running.task, return_exceptions=True)
        if isinstance(ended, Exception):
            log.warning("cluster_watch_failed", cluster=str(cluster_id), error=f"{type(ended).__name__}: {ended}"[:300])
