"""What the conformance suite needs of an engine, and the embedded engine under it. A second engine adds itself to `ENGINES`."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text

from shared.db.engine import Database
from shared.jobs import views
from shared.jobs.declare import JobDef, Registry
from shared.jobs.engine import EmbeddedEngine
from shared.jobs.hub import Hub
from shared.jobs.ledger import FINAL, Hook, JobRequest, Ledger

PATIENCE = 60.0  # seconds; far more than anything here takes on an idle machine


@dataclass
class Harness:
    """A ledger with an engine that drives it."""

    database: Database
    ledger: Ledger

    async def submit(self, definition: JobDef, argument: Any = None, **more: Any) -> UUID:
        async with self.database.transaction() as session:
            view = await self.ledger.submit(session, JobRequest(definition, argument, **more))
        return UUID(view["id"])

    async def cancel(self, job: UUID) -> dict[str, Any]:
        async with self.database.transaction() as session:
            return await self.ledger.cancel(session, job)

    async def retry(self, job: UUID) -> dict[str, Any]:
        async with self.database.transaction() as session:
            return await self.ledger.retry(session, job)

    async def send(self, job: UUID, name: str, data: Any) -> None:
        async with self.database.transaction() as session:
            await self.ledger.send_event(session, job, name, data)

    async def view(self, job: UUID) -> dict[str, Any]:
        async with self.database.statement() as connection:
            view = await views.load_one(connection, job)
        assert view is not None
        return view

    async def until(self, job: UUID, *states: str, timeout: float = PATIENCE) -> dict[str, Any]:
        """The job's view once it is in one of the states (any final one by default)."""
        wanted = set(states) or FINAL
        async with asyncio.timeout(timeout):
            while True:
                changed = self.ledger.hub.watch(job)
                view = await self.view(job)
                if view["state"] in wanted:
                    return view
                try:
                    async with asyncio.timeout(0.5):
                        await changed.wait()
                except TimeoutError:
                    continue

    async def until_step(self, job: UUID, key: str, state: str, timeout: float = PATIENCE) -> dict[str, Any]:
        async with asyncio.timeout(timeout):
            while True:
                changed = self.ledger.hub.watch(job)
                for step in (await self.view(job))["steps"]:
                    if step["key"] == key and step["state"] == state:
                        return dict(step)
                try:
                    async with asyncio.timeout(0.5):
                        await changed.wait()
                except TimeoutError:
                    continue

    async def events(self, job: UUID) -> list[Any]:
        async with self.database.statement() as connection:
            rows = await connection.execute(
                text("SELECT seq, topic_seq, type, data FROM jobs.event WHERE job_id = :job ORDER BY seq"), {"job": job}
            )
            return list(rows.all())


@asynccontextmanager
async def embedded(
    database: Database, registry: Registry, hooks: dict[str, Hook] | None = None, lease: float = 2.0
) -> AsyncIterator[Harness]:
    hub = Hub(database)
    await hub.start()
    ledger = Ledger(database, hub, hooks)
    engine = EmbeddedEngine(database, ledger, registry, lease=lease)
    await engine.start()
    try:
        yield Harness(database, ledger)
    finally:
        await engine.close()
        await hub.close()


Start = Callable[..., AbstractAsyncContextManager[Harness]]
ENGINES: dict[str, Start] = {"embedded": embedded}
