"""Puts the parts of one process together: database, ledger, engine, app, gateway, and this machine as a cluster.

The only place that knows that all services run here. What is started is stopped in the opposite order.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog
from fastapi import FastAPI
from sqlalchemy import text

from services.app.clusters.reach import Reached
from services.app.clusters.service import CLUSTERS
from services.app.clusters.tables import ClusterRow
from services.app.context import AppContext
from services.app.endpoints.published import Published
from services.app.flows.internal import FlowAccess
from services.app.identity import bootstrap
from services.app.identity.authenticate import Authenticator
from services.app.internal import AppAccess
from services.app.main import create_app, hooks
from services.app.maintenance import Maintenance
from services.app.models import catalog as catalogue
from services.app.schedules.firing import Schedules
from services.app.templates import builtin as templates
from services.app.webhooks.delivery import Delivery
from services.app.webhooks.sending import Sender
from services.assembly.access import access_in_process
from services.assembly.objects import opened, prepared, reached
from services.assembly.publisher import Publisher
from services.cluster.jobs import JOBS as CLUSTER_JOBS
from services.cluster.jobs.tools import ClusterTools
from services.cluster.reach import Reach
from services.cluster.runtimes.local.runtime import LocalRuntime
from services.cluster.sites.clients import Clients
from services.cluster.sites.local import LocalSite
from services.cluster.watch.watches import Watches
from services.cluster.watch.world import World
from services.embedded.folder import MachineUse, Places, machine_cluster_id, write_private
from services.embedded.observer import Observer
from services.flow.jobs import JOBS as FLOW_JOBS
from services.flow.known import task_types
from services.flow.tools import FlowTools
from services.gateway.limits import Limits
from services.gateway.metrics import Metrics as GatewayMetrics
from services.gateway.routes import Gateway
from services.gateway.routes import router as gateway_route
from services.gateway.table import RouteTable
from services.model.jobs import JOBS as MODEL_JOBS
from services.model.jobs.tools import ModelTools
from shared.db.engine import Database
from shared.http import pages
from shared.jobs.declare import Registry
from shared.jobs.engine import EmbeddedEngine
from shared.jobs.feed import Feeds
from shared.jobs.hub import Hub
from shared.jobs.ledger import Ledger
from shared.security.envelope import Keyring
from shared.settings import Settings
from shared.telemetry.database import of_database
from shared.telemetry.ledger import LedgerNow
from shared.telemetry.metrics import Read, exposition, registry
from shared.telemetry.probes import Readiness

FIRST_LOOK = 5.0  # seconds that the start waits until the workers that run are known

log = structlog.get_logger(__name__)


class Assembly:
    """One running Stepway, over a migrated database. `start` and `stop` are called from the event loop."""

    def __init__(self, settings: Settings, places: Places, database_url: str, keyring: Keyring) -> None:
        self.settings = settings
        self._places = places
        self.database = Database(database_url, pool_size=20)
        self.hub = Hub(self.database)
        self.cluster_id = machine_cluster_id(places)
        self.runtime = LocalRuntime(places.machine / "workers")
        self._use = MachineUse(places.machine)
        self._registry = Registry()
        ledger = Ledger(self.database, self.hub)
        self.clients = Clients()
        reach = Reached()
        self.context = AppContext(
            settings=settings, database=self.database, hub=self.hub, ledger=ledger, feeds=Feeds(self.database, self.hub),
            keyring=keyring, objects=opened(settings, places.objects), jobs=self._registry, logs=reach, clusters=reach,
            task_types=task_types(),
        )  # fmt: skip
        ledger.hooks = hooks(self.context)
        self._internal = AppAccess(self.context)
        self._registry.add(MODEL_JOBS, ModelTools(self._internal, self.context.objects, settings))
        machine = LocalSite(self.cluster_id, self.runtime, places.machine / "models", self.context.objects)
        self._cluster_tools = ClusterTools(self._internal, self.context.objects, settings, machine, self.clients)
        self._registry.add(CLUSTER_JOBS, self._cluster_tools)
        flows = FlowAccess(self.context)
        self._registry.add(FLOW_JOBS, FlowTools(self._internal, flows, self.context.objects, settings))
        reach.use(self.context, Reach(self._cluster_tools))
        self.engine = EmbeddedEngine(self.database, ledger, self._registry)
        self.table = RouteTable()
        self.readiness = Readiness({
            "database": self._database_answers, "job engine": self._engine_joined, "objects": self._objects_reached,
            "gateway table": self._table_known,
        })  # fmt: skip
        self.app: FastAPI = create_app(self.context, self.readiness.missing, self.dead)
        self._ledger_now = LedgerNow(self.database, self._registry.announced)
        self.metrics = registry(
            self._ledger_now,
            *of_database(self.database),
            Read(
                "stepway_streams_open", "Event streams, followed logs and waits.", None,
                lambda: {"": self.app.state.stream_slots.open},
            ),
            Read("stepway_cluster_watches", "Clusters that this process watches.", "state", self._watch_states),
        )  # fmt: skip
        self._watches: Watches | None = None
        self._gateway: Gateway | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    async def start(self) -> str | None:
        """Start everything; returns the admin's key when it was made just now."""
        await asyncio.to_thread(self._use.begin)
        await prepared(self.context.objects)
        pages.use_key(await asyncio.to_thread(_cursor_key, self._places.key))
        await catalogue.seed(self.database)
        await templates.seed(self.database)
        await self._ensure_machine()
        key = await bootstrap.ensure_admin(self.database, self._keep_admin_key)
        await self.hub.start()
        publisher = Publisher(Published(self.context), self.table, self.clients, self._cluster_tools.addresses)
        self._gateway = Gateway(
            self.table, access_in_process(self.context, self.app.state.authenticator, self.table),
            Limits(rate_quota=self.settings.rate_quota, rate_seconds=self.settings.rate_window),
            refresh=publisher.refresh, metrics=GatewayMetrics(self.metrics),
        )  # fmt: skip
        self.app.router.routes.insert(0, gateway_route(self._gateway))
        await self.engine.start()
        observer = Observer(self.cluster_id, self._cluster_tools, self._internal, self.engine)
        self._spawn("observer", observer.run)
        await _within(FIRST_LOOK, observer.looked.wait())
        await publisher.refresh()
        self._spawn("publisher", publisher.run)
        tools = self._cluster_tools
        world = World(
            self._internal, self.clients, tools.addresses, self.context.objects, self.settings, watchers=tools.watchers
        )  # fmt: skip
        self._watches = Watches(world, self._hold, lambda: self.hub.watch(CLUSTERS))
        self._spawn("cluster-watches", self._watches.run)
        self._spawn("maintenance", Maintenance(self.context, self._hold).run)
        self._spawn("webhooks", Delivery(self.context, Sender(self.settings)).run)
        self._spawn("schedules", Schedules(self.context).run)
        return key

    async def _hold(self, lease: str) -> int | None:
        """By the engine's name of today: it begins under another one when it was taken for dead."""
        return await self.engine.claims.hold(lease)

    async def _keep_admin_key(self, key: str) -> None:
        await asyncio.to_thread(write_private, self._places.admin_key, key + "\n")

    async def admin_key_file(self) -> Path | None:
        """Where an admin's key is kept that is valid; None where another process has made the admin."""
        path = self._places.admin_key
        if not await asyncio.to_thread(path.exists):
            return None
        authenticator: Authenticator = self.app.state.authenticator
        key = (await asyncio.to_thread(path.read_text)).strip()
        return path if await authenticator.by_key(key) is not None else None

    def _spawn(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        async def body() -> None:
            await run()

        self._tasks.append(asyncio.create_task(body(), name=name))

    async def stop(self, seconds: float) -> None:
        """Stop everything within so many seconds. Runs go on where they were at the next start.

        This machine's workers are stopped too, unless another process uses them.
        """
        clock = asyncio.get_running_loop().time
        end = clock() + seconds
        self._stopping = True
        self.app.state.stream_slots.close()
        for task in self._tasks:
            task.cancel()
        ending = [asyncio.gather(*self._tasks, return_exceptions=True), self.engine.close()]
        if self._gateway is not None:
            ending.append(self._gateway.aclose())
        await asyncio.gather(*(_within(seconds * 0.4, work) for work in ending))
        await _within(0.3, self.clients.aclose())
        if self._use.is_last():
            left = max(end - 0.3 - clock(), 0.5)
            await _within(left + 0.1, self.runtime.stop_all(timeout=left))
        self._use.end()
        await _within(0.3, self.hub.close())
        await _within(0.3, self.database.close())

    async def _ensure_machine(self) -> None:
        """This machine is a cluster like any other, that cannot be deleted."""
        facts = (await self.runtime.inspect()).model_dump(mode="json")
        async with self.database.transaction() as session:
            await session.execute(text("SELECT pg_advisory_xact_lock(5308418)"))
            row = await session.get(ClusterRow, self.cluster_id)
            if row is None:
                taken = await session.scalar(text("SELECT count(*) FROM platform.cluster WHERE kind = 'local'"))
                name = "this machine" if not taken else f"this machine {taken + 1}"
                row = ClusterRow(
                    id=self.cluster_id, name=name, kind="local", state="available", uid=f"machine:{self.cluster_id}",
                    icon="icons/clusters/machine.png", access={}, epoch=0, revision=1,
                )  # fmt: skip
                session.add(row)
            row.facts = facts

    def dead(self) -> list[str]:
        """What must run from the start to the end, and does not any more."""
        if self._stopping:
            return []
        return [*self.engine.dead(), *(task.get_name() for task in self._tasks if task.done())]

    async def exposition(self) -> bytes:
        """All metrics as text, with what the database says if it answers."""
        await self._ledger_now.refresh()
        return exposition(self.metrics)

    def _watch_states(self) -> dict[str, int]:
        return self._watches.states() if self._watches is not None else {}

    async def _database_answers(self) -> bool:
        async with self.database.statement() as connection:
            await connection.execute(text("SELECT 1"))
        return True

    async def _engine_joined(self) -> bool:
        return self.engine.is_joined

    async def _objects_reached(self) -> bool:
        return await reached(self.context.objects)

    async def _table_known(self) -> bool:
        return self.table.is_known


async def _within(seconds: float, work: Awaitable[Any]) -> None:
    """Do it, but not for longer: the rest must go on."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        log.warning("took_too_long", what=getattr(work, "__qualname__", ""), seconds=seconds)
    except Exception as error:
        log.warning("failed", what=getattr(work, "__qualname__", ""), error=f"{type(error).__name__}: {error}"[:300])


def _cursor_key(path: Path) -> bytes:
    """Signs the cursors of lists: the same in every process that has the same encryption key."""
    return hashlib.sha256(b"cursors of lists\0" + path.read_bytes()).digest()
