"""Looks after this machine's workers, under a lease: one process of those that share the database does it at a time.

What it sees goes to the app with the lease's epoch; an observer that has lost the lease is not believed any more.
"""

import asyncio
import contextlib
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import structlog

from services.cluster.runtimes.local.runtime import LocalRuntime
from shared.contracts.ports import AppPort
from shared.jobs.engine import EmbeddedEngine

LOOK_EVERY = 0.5
RECONCILE_EVERY = 20.0
LEASE_EVERY = 2.0

log = structlog.get_logger(__name__)


class Observer:
    def __init__(self, cluster_id: UUID, runtime: LocalRuntime, app: AppPort, engine: EmbeddedEngine) -> None:
        self._cluster_id = cluster_id
        self._runtime = runtime
        self._app = app
        self._engine = engine
        self._last: list[dict[str, Any]] | None = None
        self._next_lease = self._next_reconcile = self._next_report = 0.0
        self._epoch: int | None = None

    async def run(self) -> None:
        while True:
            try:
                await self._look()
            except Exception as error:  # the database or a worker's folder is away for a moment: look again
                log.warning("observe_failed", error=f"{type(error).__name__}: {error}"[:300])
                self._next_lease = 0.0
            await asyncio.sleep(LOOK_EVERY)

    async def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._next_lease:
            epoch = await self._engine.claims.hold(f"cluster:{self._cluster_id}")
            if epoch != self._epoch:
                self._last, self._next_reconcile = None, 0.0
            self._epoch, self._next_lease = epoch, now + LEASE_EVERY
        if self._epoch is None:
            return
        if now >= self._next_reconcile:
            self._next_reconcile = now + RECONCILE_EVERY
            await self._runtime.reconcile()
        await self._report(now)

    async def _report(self, now: float) -> None:
        seen = [one.model_dump(mode="json", exclude_none=True) for one in (await self._runtime.observe()).values()]
        essence = [
            {**one, "observed_at": None, "workers": [_still(worker) for worker in one["workers"]]} for one in seen
        ]
        if essence == self._last and now < self._next_report:
            return
        if self._epoch is not None and await self._app.observe(self._cluster_id, self._epoch, seen):
            self._last, self._next_report = essence, now + 10.0
        else:
            self._epoch, self._next_lease = None, 0.0


def _still(worker: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in worker.items() if name != "memory_bytes"}


async def first_look(runtime: LocalRuntime) -> None:
    """Adopt what runs before the first request is answered; a fault is left to the observer's own rounds."""
    with contextlib.suppress(Exception):
        await runtime.reconcile()
        log.info("workers_adopted", at=datetime.now(UTC).isoformat())
