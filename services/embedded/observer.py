"""Looks after this machine's workers, under a lease: one process of those that share the database does it at a time.

What it sees goes to the app with the lease's epoch; an observer that has lost the lease is not believed any more. Now
and then it brings the machine in line with what the app says should run (`services.cluster.jobs.reconcile`).
"""

import asyncio
from typing import Any
from uuid import UUID

import structlog

from services.cluster.jobs import reconcile
from services.cluster.jobs.tools import ClusterTools
from services.cluster.runtimes.base import Observation
from shared.contracts.ports import ObserverPort
from shared.jobs.engine import EmbeddedEngine

LOOK_EVERY = 0.5
RECONCILE_EVERY = 20.0
LEASE_EVERY = 2.0
REPORT_EVERY = 10.0
PAUSE = 3.0  # after a fault

log = structlog.get_logger(__name__)


class Observer:
    def __init__(self, cluster_id: UUID, tools: ClusterTools, app: ObserverPort, engine: EmbeddedEngine) -> None:
        self._cluster_id = cluster_id
        self._tools = tools
        self._app = app
        self._engine = engine
        self._last: list[dict[str, Any]] | None = None
        self._next_lease = self._next_reconcile = self._next_report = 0.0
        self._epoch: int | None = None
        self._mending: asyncio.Task[None] | None = None
        self._missing: list[Observation] = []  # what should be here and could not be restored, with the reason
        self.looked = asyncio.Event()  # once: what runs is known

    async def run(self) -> None:
        try:
            while True:
                pause = LOOK_EVERY
                try:
                    await self._look()
                except Exception as error:  # the database or a worker's folder is away for a moment: look again
                    log.warning("observe_failed", error=f"{type(error).__name__}: {error}"[:300])
                    self._next_lease, pause = 0.0, PAUSE
                self.looked.set()
                await asyncio.sleep(pause)
        finally:
            if self._mending is not None:
                self._mending.cancel()
                await asyncio.gather(self._mending, return_exceptions=True)

    async def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._next_lease:
            epoch = await self._engine.claims.hold(f"cluster:{self._cluster_id}")
            if epoch != self._epoch:
                log.info("looks_after_workers" if epoch else "workers_left_to_another", epoch=epoch)
                self._last, self._next_reconcile = None, 0.0
            self._epoch, self._next_lease = epoch, now + LEASE_EVERY
        if self._epoch is None:
            return
        if now >= self._next_reconcile:
            self._next_reconcile = now + RECONCILE_EVERY
            await self._tools.local.runtime.reconcile()
            if self._mending is None or self._mending.done():
                self._mending = asyncio.create_task(self._mend(self._epoch), name="bring-in-line")
        await self._report(now)

    async def _mend(self, epoch: int) -> None:
        """Beside the looks, for it may bring a model's files."""
        try:
            self._missing = await reconcile.bring_in_line(self._tools, self._app, self._cluster_id, epoch)
        except Exception as error:  # the database is away: the next round will do
            log.warning("reconcile_failed", error=f"{type(error).__name__}: {error}"[:300])

    async def _report(self, now: float) -> None:
        looked = {one.endpoint_id: one for one in self._missing} | await self._tools.local.runtime.observe()
        seen = [one.model_dump(mode="json", exclude_none=True) for one in looked.values()]
        essence = [
            {**one, "observed_at": None, "workers": [_still(worker) for worker in one["workers"]]} for one in seen
        ]
        if essence == self._last and now < self._next_report:
            return
        if self._epoch is not None and await self._app.observe(self._cluster_id, self._epoch, seen):
            self._last, self._next_report = essence, now + REPORT_EVERY
        else:
            self._epoch, self._next_lease = None, 0.0


def _still(worker: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in worker.items() if name != "memory_bytes"}
