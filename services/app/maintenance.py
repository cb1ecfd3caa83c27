"""What must be done now and then: expire drafts, forget old jobs, events and idempotency keys, free unused bytes.

Under a lease, so that one of the processes that share a database does it.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from sqlalchemy import text

from services.app.context import AppContext
from services.app.endpoints import events as endpoint_events
from services.app.flows import files, orphans
from services.app.flows import repository as flows
from services.app.identity import repository as identity
from services.app.identity.idempotency import purge as purge_idempotency
from services.app.jobs import revocation
from services.app.models import holdings
from services.app.schedules import firing
from services.app.triggers import receiving
from services.app.webhooks import delivery
from services.app.wizards import service as wizards
from services.app.workflow_servers import repository as workflow_servers
from shared.http.sse import first_of
from shared.jobs import retention

FIRST = 30.0  # seconds after the start
REVOKE_EVERY = 20.0  # seconds: no queued job outlives its key or membership by a minute
ORPHANS_EVERY, ORPHANS_PAUSE = 20.0, 1.0  # seconds: when nothing is heard, and between two looks at the least
KEPT = 7 * 86400.0  # seconds that the scratch of a failed import waits for a retry
UNTOUCHED = 60.0  # seconds, and nobody may come back for it

_UNFINISHED = text("""
    SELECT EXISTS (SELECT 1 FROM jobs.job WHERE kind = 'import_model' AND state NOT IN ('succeeded', 'cancelled'))""")

log = structlog.get_logger(__name__)


class Maintenance:
    """`hold` takes or keeps a lease by its name, as `Claims.hold` does."""

    def __init__(self, context: AppContext, hold: Callable[[str], Awaitable[int | None]]) -> None:
        self._context = context
        self._hold = hold

    async def run(self) -> None:
        await asyncio.gather(self._rounds(), self._revocations(), self._orphans())

    async def _revocations(self) -> None:
        while True:
            await asyncio.sleep(REVOKE_EVERY)
            if await self._is_ours():
                await self._do("revoke_jobs", lambda: revocation.cancel_revoked(self._context))

    async def _orphans(self) -> None:
        while True:
            ended = self._context.hub.watch(orphans.ORPHANS)
            if await self._is_ours():
                await self._do("cancel_orphans", lambda: orphans.cancel_all(self._context))
            await first_of(ended, timeout=ORPHANS_EVERY)
            await asyncio.sleep(ORPHANS_PAUSE)

    async def _rounds(self) -> None:
        every = self._context.settings.maintenance_seconds
        await asyncio.sleep(min(FIRST, every))
        while True:
            if await self._is_ours():
                await self.round()
            await asyncio.sleep(every)

    async def round(self) -> None:
        """Every duty once."""
        context, settings = self._context, self._context.settings
        await self._do("expire_drafts", lambda: wizards.expire(context, settings.draft_idle_days))
        await self._do("purge_jobs", lambda: retention.purge(context.database, settings.job_retention_days))
        await self._do("purge_flows", self._purge_flows)
        await self._do("purge_idempotency", lambda: purge_idempotency(context.database))
        await self._do("purge_logins", self._purge_logins)
        await self._do("trim_events", self._trim_events)
        await self._do("forget_files", lambda: files.forget(context))
        await self._do("forget_deliveries", lambda: delivery.forget(context))
        await self._do("forget_firings", lambda: firing.forget(context))
        await self._do("forget_arrivals", lambda: receiving.forget(context))
        await self._do("forget_workflow_runs", self._forget_workflow_runs)
        await self._do("sweep_objects", lambda: holdings.sweep(context))
        await self._do("sweep_scratch", self._sweep_scratch)

    async def _purge_flows(self) -> None:
        async with self._context.database.transaction() as session:
            await flows.purge(session, self._context.settings.job_retention_days)

    async def _purge_logins(self) -> None:
        async with self._context.database.transaction() as session:
            await identity.purge_logins(session)

    async def _trim_events(self) -> None:
        async with self._context.database.transaction() as session:
            await endpoint_events.trim(session, self._context.settings.job_retention_days)

    async def _forget_workflow_runs(self) -> None:
        async with self._context.database.transaction() as session:
            await workflow_servers.purge(session, self._context.settings.job_retention_days)

    async def _sweep_scratch(self) -> None:
        """What an import has left unfinished: soon, when no import may go on with it."""
        async with self._context.database.statement() as connection:
            wanted = await connection.scalar(_UNFINISHED)
        await self._context.objects.sweep_scratch(KEPT if wanted else UNTOUCHED)

    async def _is_ours(self) -> bool:
        try:
            return await self._hold("maintenance") is not None
        except Exception as error:  # the database is away: the next round will do
            log.warning("maintenance_lease_failed", error=type(error).__name__)
            return False

    async def _do(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except Exception as error:  # one duty's fault keeps none of the others from being done
            log.warning("maintenance_failed", duty=name, error=f"{type(error).__name__}: {error}"[:300])
