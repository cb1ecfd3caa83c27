"""What must be done now and then: expire drafts, forget old jobs, events and idempotency keys, free unused bytes.

Under a lease, so that one of the processes that share a database does it.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from services.app.context import AppContext
from services.app.identity.idempotency import purge as purge_idempotency
from services.app.models import service as models
from services.app.wizards import service as wizards
from shared.jobs import retention
from shared.jobs.engine import EmbeddedEngine

EVERY = 600.0
FIRST = 30.0
SCRATCH_DAYS = 7

log = structlog.get_logger(__name__)


class Maintenance:
    def __init__(self, context: AppContext, engine: EmbeddedEngine) -> None:
        self._context = context
        self._engine = engine

    async def run(self) -> None:
        await asyncio.sleep(FIRST)
        while True:
            if await self._is_ours():
                for name, work in self._duties().items():
                    await self._do(name, work)
            await asyncio.sleep(EVERY)

    def _duties(self) -> dict[str, Callable[[], Awaitable[object]]]:
        context, settings = self._context, self._context.settings
        return {
            "expire_drafts": lambda: wizards.expire(context, settings.draft_idle_days),
            "purge_jobs": lambda: retention.purge(context.database, settings.job_retention_days),
            "purge_idempotency": lambda: purge_idempotency(context.database),
            "sweep_blobs": lambda: models.sweep(context),
            "sweep_scratch": lambda: context.objects.sweep_scratch(SCRATCH_DAYS * 86400.0),
        }

    async def _is_ours(self) -> bool:
        try:
            return await self._engine.claims.hold("maintenance") is not None
        except Exception as error:  # the database is away: the next round will do
            log.warning("maintenance_lease_failed", error=type(error).__name__)
            return False

    async def _do(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except Exception as error:  # one duty's fault keeps none of the others from being done
            log.warning("maintenance_failed", duty=name, error=f"{type(error).__name__}: {error}"[:300])
