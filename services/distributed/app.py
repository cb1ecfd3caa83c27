"""The app as a service of its own: the public API, the ledger, and what gives runs to the services that drive them."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from uuid import UUID

from sqlalchemy import text
from starlette.types import ASGIApp

from services.app.clusters.reach import Reached
from services.app.context import AppContext
from services.app.endpoints.published import Published, project_of
from services.app.flows.internal import FlowAccess
from services.app.identity.admission import Admission
from services.app.identity.authenticate import Authenticator
from services.app.internal import AppAccess
from services.app.main import create_app, hooks
from services.app.maintenance import Maintenance
from services.app.models import catalog as catalogue
from services.app.schedules.firing import Schedules
from services.app.templates import builtin as templates
from services.app.webhooks.delivery import Delivery
from services.app.webhooks.sending import Sender
from services.assembly.process import StartError
from services.cluster.jobs import JOBS as CLUSTER_JOBS
from services.distributed.parts import ASK_PATIENCE, Parts, scratch_of
from services.flow.jobs import JOBS as FLOW_JOBS
from services.flow.known import task_types
from services.model.jobs import JOBS as MODEL_JOBS
from shared.contracts.flows import FlowPort
from shared.contracts.gateway import Admitted, PublishedTable, Shown
from shared.contracts.ports import AppPort, GatewayPort, ObserverPort, ReachPort
from shared.db import migrate
from shared.db.engine import Database
from shared.http import pages
from shared.jobs.dapr.access import LedgerAccess
from shared.jobs.dapr.dispatcher import Dispatcher
from shared.jobs.dapr.dispatcher import Service as Drives
from shared.jobs.dapr.ports import JobsPort, RunsPort
from shared.jobs.declare import Registry
from shared.jobs.feed import Feeds
from shared.jobs.hub import Hub
from shared.jobs.ledger import Ledger
from shared.objects.opened import open_store
from shared.rpc.client import remote
from shared.rpc.server import Served
from shared.security.envelope import Keyring
from shared.settings import Settings
from shared.telemetry.database import of_database
from shared.telemetry.ledger import LedgerNow
from shared.telemetry.metrics import Read, exposition, registry
from shared.telemetry.probes import Health, Readiness

SERVES = {"model": MODEL_JOBS, "cluster": CLUSTER_JOBS, "flow": FLOW_JOBS}


class AppService:
    def __init__(self, parts: Parts) -> None:
        settings = parts.settings
        assert settings.database_url is not None
        self._parts = parts
        self.database = Database(settings.database_url, pool_size=20)
        self.hub = Hub(self.database)
        ledger = Ledger(self.database, self.hub)
        jobs = Registry()
        for declared in SERVES.values():
            jobs.add(declared, None)
        reach = Reached()
        self.context = AppContext(
            settings=settings, database=self.database, hub=self.hub, ledger=ledger, feeds=Feeds(self.database, self.hub),
            keyring=keyring_of(settings), objects=open_store(settings, scratch_of(settings)), jobs=jobs, logs=reach,
            clusters=reach, task_types=task_types(),
        )  # fmt: skip
        ledger.hooks = hooks(self.context)
        reach.use(self.context, remote(ReachPort, "cluster", parts.sidecar, patience=ASK_PATIENCE))
        self._dispatcher = Dispatcher(self.database, ledger, [
            Drives(name, tuple(declared), remote(RunsPort, name, parts.sidecar, patience=ASK_PATIENCE))
            for name, declared in SERVES.items()
        ])  # fmt: skip
        self._ledger_access = LedgerAccess(self.database, ledger, self._dispatcher.kinds)
        self._readiness = Readiness({"database": self._database_answers, "sidecar": parts.sidecar.is_ready})
        self._app = create_app(self.context, self._readiness.missing, self._dead)
        self._maintenance = Maintenance(self.context, self._dispatcher.hold)
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._ledger_now = LedgerNow(self.database, jobs.announced)
        self._metrics = registry(
            self._ledger_now, *of_database(self.database),
            Read("stepway_streams_open", "Event streams, followed logs and waits.", None,
                 lambda: {"": self._app.state.stream_slots.open}),
        )  # fmt: skip
        workers = frozenset(SERVES)
        access = AppAccess(self.context, self._dispatcher.kinds)
        self.ports = [
            Served(JobsPort, self._ledger_access, workers),
            Served(AppPort, access, workers),
            Served(FlowPort, FlowAccess(self.context, self._dispatcher.kinds), frozenset({"flow"})),
            Served(ObserverPort, access, frozenset({"cluster"})),
            Served(GatewayPort, _ForGateways(self.context, self._app.state.authenticator), frozenset({"gateway"})),
        ]

    @property
    def public(self) -> ASGIApp:
        return self._app

    async def start(self, health: Health) -> None:
        health.starting = "waiting for the database's schema"
        assert self.context.settings.database_url is not None
        await asyncio.to_thread(migrate.wait_for_schema, self.context.settings.database_url)
        health.starting = "starting the app"
        pages.use_key(self.context.keyring.derive("cursors of lists"))
        await catalogue.seed(self.database)
        await templates.seed(self.database)
        await self.hub.start()
        await self._dispatcher.start()
        self._spawn("maintenance", self._maintenance.run)
        self._spawn("webhooks", Delivery(self.context, Sender(self.context.settings)).run)
        self._spawn("schedules", Schedules(self.context).run)
        health.dead, health.missing, health.exposition = self._dead, self._readiness.missing, self._exposition

    async def stop(self, seconds: float) -> None:
        self._stopping = True
        self._app.state.stream_slots.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._dispatcher.close()
        await self._ledger_access.close()
        await self.hub.close()
        await self.database.close()

    def _spawn(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        async def body() -> None:
            await run()

        self._tasks.append(asyncio.create_task(body(), name=name))

    def _dead(self) -> list[str]:
        if self._stopping:
            return []
        return [*self._dispatcher.dead(), *(task.get_name() for task in self._tasks if task.done())]

    async def _database_answers(self) -> bool:
        async with self.database.statement() as connection:
            await connection.execute(text("SELECT 1"))
        return True

    async def _exposition(self) -> bytes:
        await self._ledger_now.refresh()
        return exposition(self._metrics)


class _ForGateways:
    """Implements `GatewayPort`."""

    def __init__(self, context: AppContext, authenticator: Authenticator) -> None:
        self._published = Published(context)
        self._admission = Admission(authenticator, context.settings.cors_origins, partial(project_of, context))

    async def routes(self, seen: str | None) -> PublishedTable:
        return await self._published.routes(seen)

    async def admit(self, shown: Shown, endpoint_id: UUID) -> Admitted:
        return await self._admission.admit(shown, endpoint_id)


def keyring_of(settings: Settings) -> Keyring:
    """The installation's encryption keys. Every replica of the app reads the same file."""
    if settings.key_file is None:
        raise StartError(
            "The service app needs STEPWAY_KEY_FILE: the file with the encryption key of this installation."
        )
    path = settings.key_file.expanduser().absolute()
    if not path.exists():
        raise StartError(f"There is no encryption key in {path}; `stepway db make-key FILE` makes one.")
    return Keyring.load(path)
