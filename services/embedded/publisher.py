"""Keeps the gateway's table as the endpoints' rows say: at once when one changes, and every few seconds anyway."""

import asyncio
import contextlib
from uuid import UUID

import structlog
from pydantic import SecretStr

from services.app.context import AppContext
from services.app.endpoints import repository
from services.app.endpoints.deploy import key_context
from services.app.endpoints.service import ENDPOINTS
from services.app.endpoints.tables import EndpointRow
from services.gateway.table import Route, RouteTable, Worker

LOOK_AGAIN = 2.0

log = structlog.get_logger(__name__)


class Publisher:
    def __init__(self, context: AppContext, table: RouteTable) -> None:
        self._context = context
        self._table = table
        self._known: set[UUID] = set()

    async def run(self) -> None:
        while True:
            changed = self._context.hub.watch(ENDPOINTS)
            try:
                await self.refresh()
            except Exception as error:  # the database is away: the last table serves on
                log.warning("publish_failed", error=type(error).__name__)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN):
                    await changed.wait()

    async def refresh(self) -> None:
        async with self._context.database.transaction() as session:
            rows = await repository.published(session)
        for row in rows:
            self._table.replace(row.id, self._route(row))
        present = {row.id for row in rows}
        for gone in self._known - present:
            self._table.remove(gone)
        self._known = present

    def _route(self, row: EndpointRow) -> Route:
        key = SecretStr(self._context.keyring.open(row.sealed, key_context(row.id)).decode())
        capacity = int(row.desired.get("concurrency") or 1)
        workers = [
            Worker(id=worker["id"], url=worker["url"], api_key=key, capacity=capacity)
            for worker in row.observed.get("workers", [])
            if worker["state"] == "ready" and worker.get("url") and row.phase != "deleting"
        ]
        return Route(
            endpoint_id=row.id, project_id=row.project_id, model_name=row.name, served_name=row.slug, aliases=(row.name,),
            state=row.state, reason=row.reason, workers=tuple(workers), generation=row.generation,
            created=int(row.created_at.timestamp()),
        )  # fmt: skip
