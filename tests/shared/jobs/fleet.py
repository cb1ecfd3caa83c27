"""Several replicas of one service under one app, each with a sidecar of its own: they join, leave, and are killed.

`engines` has the same with one replica, for the conformance suite.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from pydantic import SecretStr
from sqlalchemy import text

from shared.db.engine import Database
from shared.jobs.dapr.access import LedgerAccess
from shared.jobs.dapr.dispatcher import Dispatcher, Service
from shared.jobs.dapr.ports import JobsPort, RunsPort
from shared.jobs.dapr.worker import Worker
from shared.jobs.declare import JobDef, Registry
from shared.jobs.hub import Hub
from shared.jobs.ledger import Ledger
from shared.rpc.client import remote
from shared.rpc.identity import APP, Identity, service_key
from shared.rpc.server import Served
from tests.shared.jobs.engines import PATIENCE, SECRET, SERVICE, Harness, Side
from tests.testbed.dapr import Dapr

BEAT_PATIENCE = 2.0  # seconds, as in production


@dataclass
class Member:
    """A replica."""

    name: str
    side: Side
    worker: Worker
    dapr: Dapr
    gone: bool = False

    async def leave(self) -> None:
        """In good order, as when it is told to stop."""
        self.gone = True
        await self.worker.close()
        await self.side.close()
        await asyncio.to_thread(self.dapr.processes.stop, self.side.daprd.name)

    async def die(self) -> None:
        """Nobody hears of it: it has no sidecar any more when it stops."""
        self.gone = True
        await asyncio.to_thread(self.dapr.processes.kill, self.side.daprd.name)
        await self.worker.close()
        await self.side.close()


@dataclass
class Fleet(Harness):
    dapr: Dapr
    prefix: str
    app: Side
    members: list[Member] = field(default_factory=list)

    async def join(self, name: str, jobs: Iterable[JobDef], tools: Any) -> Member:
        """A replica that knows these jobs. It drives them with `tools`."""
        registry = Registry()
        registry.add(jobs, tools)
        identity = Identity(SERVICE, key=SecretStr(service_key(SECRET, SERVICE)))
        side = Side.beside(self.dapr, identity, self.database.url, self.prefix, name=f"daprd-{self.prefix}{name}")
        ledger, beats = (remote(JobsPort, APP, side.sidecar, patience=most) for most in (PATIENCE, BEAT_PATIENCE))
        worker = Worker(SERVICE, registry, side.sidecar, ledger, beats)
        side.serve(Served(RunsPort, worker, frozenset({APP})))
        member = Member(name, side, worker, self.dapr)
        self.members.append(member)
        await asyncio.to_thread(self.dapr.wait_ready, side.daprd)
        await worker.start()
        async with asyncio.timeout(PATIENCE):
            await worker.joined.wait()
        return member

    @asynccontextmanager
    async def cut_off(self) -> AsyncIterator[None]:
        """The app hears nobody meanwhile, and nobody hears it."""
        await asyncio.to_thread(self.dapr.processes.kill, self.app.daprd.name)
        yield
        await asyncio.to_thread(self.dapr.processes.restart, self.app.daprd.name)
        await asyncio.to_thread(self.dapr.wait_ready, self.app.daprd)

    async def count(self, statement: str) -> int:
        async with self.database.statement() as connection:
            return int(await connection.scalar(text(statement)) or 0)

    async def until_none(self, statement: str) -> None:
        """Until this query counts nothing."""
        async with asyncio.timeout(PATIENCE):
            while await self.count(statement):
                await asyncio.sleep(0.1)


@asynccontextmanager
async def fleet(dapr: Dapr, database: Database, jobs: Iterable[JobDef]) -> AsyncIterator[Fleet]:
    """The app, which knows these jobs, and no replica yet."""
    hub = Hub(database)
    await hub.start()
    ledger = Ledger(database, hub)
    prefix = f"t{uuid4().hex[:8]}-"
    app = Side.beside(dapr, Identity(APP, secret=SECRET), database.url, prefix)
    made = Fleet(database, ledger, dapr, prefix, app)
    runs: RunsPort = remote(RunsPort, SERVICE, app.sidecar, patience=PATIENCE)
    dispatcher = Dispatcher(database, ledger, [Service(SERVICE, tuple(jobs), runs)])
    access = LedgerAccess(database, ledger, dispatcher.kinds)
    app.serve(Served(JobsPort, access, frozenset({SERVICE})))
    try:
        await asyncio.to_thread(dapr.wait_ready, app.daprd)
        await dispatcher.start()
        yield made
    finally:
        await dispatcher.close()
        for member in made.members:
            if not member.gone:
                await member.leave()
        await access.close()
        await app.close()
        await asyncio.to_thread(dapr.processes.kill, app.daprd.name)
        await hub.close()
