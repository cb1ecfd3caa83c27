"""What the conformance suite needs of an engine, and both engines under it: the embedded one, and Dapr's.

Under the latter, the app's side and the service's are one process here, but all that they say to each other goes through a
real sidecar.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
import uvicorn
from pydantic import SecretStr
from sqlalchemy import text
from starlette.applications import Starlette

from shared.db.engine import Database
from shared.jobs import views
from shared.jobs.dapr.access import LedgerAccess
from shared.jobs.dapr.dispatcher import Dispatcher, Service
from shared.jobs.dapr.ports import JobsPort, RunsPort
from shared.jobs.dapr.sidecar import Sidecar
from shared.jobs.dapr.worker import Worker
from shared.jobs.declare import JobDef, Registry
from shared.jobs.engine import EmbeddedEngine
from shared.jobs.hub import Hub
from shared.jobs.ledger import FINAL, Hook, JobRequest, Ledger
from shared.rpc.client import remote
from shared.rpc.identity import APP, Identity, service_key
from shared.rpc.server import Served, routes
from tests.testbed.dapr import Dapr, Daprd, session_dapr

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


SERVICE = "model"
SECRET = SecretStr("the conformance suite's")


@dataclass
class Side:
    """A service with its sidecar: what it serves is given when it is known."""

    listener: socket.socket
    daprd: Daprd
    sidecar: Sidecar
    identity: Identity
    _server: "Server | None" = None
    _serving: "asyncio.Task[None] | None" = None

    @classmethod
    def beside(cls, dapr: Dapr, identity: Identity, database_url: str, prefix: str, name: str | None = None) -> "Side":
        listener = socket.create_server(("127.0.0.1", 0))
        daprd = dapr.sidecar(identity.service, listener.getsockname()[1], database_url, prefix, name)
        return cls(listener, daprd, Sidecar(daprd.address, identity), identity)

    def serve(self, *ports: Served) -> None:
        app = Starlette(routes=routes(ports, self.identity, SecretStr(self.daprd.app_token)))
        self._server = Server(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
        self._serving = asyncio.create_task(self._server.serve(sockets=[self.listener]))

    async def close(self) -> None:
        await self.sidecar.aclose()
        if self._server is not None and self._serving is not None:
            self._server.should_exit = self._server.force_exit = True
            await self._serving


@asynccontextmanager
async def over_dapr(
    dapr: Dapr, database: Database, registry: Registry, hooks: dict[str, Hook] | None = None, lease: float = 2.0
) -> AsyncIterator[Harness]:
    hub = Hub(database)
    await hub.start()
    ledger = Ledger(database, hub, hooks)
    prefix = f"t{uuid4().hex[:8]}-"
    app = Side.beside(dapr, Identity(APP, secret=SECRET), database.url, prefix)
    key = SecretStr(service_key(SECRET, SERVICE))
    model = Side.beside(dapr, Identity(SERVICE, key=key), database.url, prefix)
    jobs: JobsPort = remote(JobsPort, APP, model.sidecar, patience=PATIENCE)
    runs: RunsPort = remote(RunsPort, SERVICE, app.sidecar, patience=PATIENCE)
    beats: JobsPort = remote(JobsPort, APP, model.sidecar, patience=2.0)
    worker = Worker(SERVICE, registry, model.sidecar, jobs, beats)
    dispatcher = Dispatcher(database, ledger, [Service(SERVICE, tuple(registry.all()), runs)])
    access = LedgerAccess(database, ledger, dispatcher.kinds)
    app.serve(Served(JobsPort, access, frozenset({SERVICE})))
    model.serve(Served(RunsPort, worker, frozenset({APP})))
    try:
        for side in (app, model):
            await asyncio.to_thread(dapr.wait_ready, side.daprd)
        await worker.start()
        await dispatcher.start()
        yield Harness(database, ledger)
    finally:
        await dispatcher.close()
        await worker.close()
        await access.close()
        for side in (app, model):
            await side.close()
            await asyncio.to_thread(dapr.processes.kill, side.daprd.name)
        await hub.close()


class Server(uvicorn.Server):
    """Leaves the signals to pytest."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


Start = Callable[..., AbstractAsyncContextManager[Harness]]
ENGINES = ("embedded", "dapr")


def starter(engine: str, config: pytest.Config) -> Start:
    """Skips the test where there is no Dapr."""
    return embedded if engine == "embedded" else partial(over_dapr, session_dapr(config))
