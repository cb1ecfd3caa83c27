"""The engine for services, against Dapr Workflow with the same ledger by hand, Dapr Workflow alone, and the embedded engine.

Everything is as in production: durable PostgreSQL, a process for each service and one for the app (this one), a sidecar
for each. The ways take turns; what is judged is the pair in the middle, by its ratio. The peer by hand (`dapr_by_hand`)
is given its runs without a dispatcher: this process claims a job as soon as it is made, and starts its workflow.
"""

import asyncio
import contextlib
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import psycopg
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.applications import Starlette

from services.assembly.process import loop_factory, make_server, until_started
from shared.db import migrate
from shared.db.engine import Database
from shared.jobs.claims import Claims
from shared.jobs.dapr.access import LedgerAccess
from shared.jobs.dapr.dispatcher import START_LEASE, Dispatcher, Service
from shared.jobs.dapr.ports import JobsPort, RunsPort
from shared.jobs.dapr.sidecar import Sidecar
from shared.jobs.declare import Registry
from shared.jobs.engine import EmbeddedEngine
from shared.jobs.hub import Hub
from shared.jobs.ledger import FINAL, Hook, JobRequest, Ledger
from shared.rpc.client import remote
from shared.rpc.identity import APP, Identity, service_key
from shared.rpc.server import Served, routes
from stepway.postgres.embedded import EmbeddedPostgres
from tests.bench.dapr_jobs import BY_HAND, HERE, JOBS, ONE, TOGETHER, TWO
from tests.bench.dapr_worker import GIVEN, Replica
from tests.bench.figures import Figure, Skipped, percentile
from tests.testbed import dapr
from tests.testbed.dapr import Dapr, Daprd
from tests.testbed.machine import missing
from tests.testbed.processes import free_ports

ROOT = Path(__file__).parents[2]
STEPS = 20  # of one job
ALONE = "alone"  # Dapr Workflow that knows of no ledger
AT_LEAST = 0.7
PATIENCE = 60.0
SECRET = SecretStr("the bench's")
REPLICAS = {ONE: 1, TWO: 2, BY_HAND: 1}
Way = Callable[[int], Awaitable[float]]
"""Runs a job of so many steps to its end; returns the seconds from its making to its first step."""


def run(quick: bool) -> list[Figure]:
    if lacking := missing("dapr"):
        raise Skipped("; ".join(lacking))
    size = Size(1, 1, 8, TOGETHER) if quick else Size(3, 3, 20, 2 * TOGETHER)
    with tempfile.TemporaryDirectory(prefix="stepway-bench-") as folder:
        server = EmbeddedPostgres(Path(folder) / "postgres")
        try:
            url = server.start()
            with psycopg.connect(url, autocommit=True) as connection:
                for name in ("dapr", HERE):
                    connection.execute(f"CREATE DATABASE {name}".encode())
            migrate.upgrade(url)
            migrate.upgrade(_beside(url, HERE))
            with dapr.running() as plane, asyncio.Runner(loop_factory=loop_factory()) as runner:
                taken = runner.run(_measure(plane, url, size))
        finally:
            server.stop()
    return _figures(taken, AT_LEAST if not quick else None)


@dataclass(frozen=True, slots=True)
class Size:
    """How many rounds, and in each how many jobs of each way: one at a time, of one step, and ten at a time."""

    rounds: int
    single: int
    starts: int
    together: int


@dataclass
class Taken:
    """By way, one for each round: steps per second of one job and of ten at a time. `starts`: milliseconds by way."""

    single: dict[str, list[float]] = field(default_factory=dict)
    together: dict[str, list[float]] = field(default_factory=dict)
    starts: dict[str, list[list[float]]] = field(default_factory=dict)
    load: list[float] = field(default_factory=list)  # of the machine, before each round


async def _measure(plane: Dapr, url: str, size: Size) -> Taken:
    taken = Taken()
    async with _app(plane, url) as app, _embedded(_beside(url, HERE)) as here:
        ways = {ONE: app.by_stepway(ONE), BY_HAND: app.by_hand, TWO: app.by_stepway(TWO), ALONE: app.alone, HERE: here}
        for way in ways.values():
            await _steps_per_second(way, TOGETHER, TOGETHER)  # warm: connections, plans, code
        for number in range(size.rounds):
            taken.load.append(os.getloadavg()[0])
            turn = list(reversed(ways.items()) if number % 2 else ways.items())
            single = {name: way for name, way in turn if name != TWO}
            for name, jobs in (await _in_turns(single, STEPS, size.single)).items():
                seconds = sum(whole for _, whole in jobs)
                taken.single.setdefault(name, []).append(size.single * STEPS / seconds)
            for name, jobs in (await _in_turns(single, 1, size.starts)).items():
                taken.starts.setdefault(name, []).append([1000 * start for start, _ in jobs])
            for name, way in turn:
                await app.settled()
                taken.together.setdefault(name, []).append(await _steps_per_second(way, size.together, TOGETHER))
    return taken


async def _in_turns(ways: dict[str, Way], steps: int, count: int) -> dict[str, list[tuple[float, float]]]:
    """`count` jobs of each way, one at a time: seconds from its making to its first step, and to its end."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(count):
        for name, way in ways.items():
            began = time.perf_counter()
            start = await way(steps)
            found[name].append((start, time.perf_counter() - began))
    return found


async def _steps_per_second(way: Way, jobs: int, concurrent: int) -> float:
    left = [STEPS] * jobs

    async def client() -> None:
        while left:
            await way(left.pop())

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrent)))
    return jobs * STEPS / (time.perf_counter() - began)


# ---- what is shown


def _figures(taken: Taken, at_least: float | None) -> list[Figure]:
    at_most = None if at_least is None else 1 / at_least
    load = f"load {min(taken.load):.1f}–{max(taken.load):.1f} on {os.cpu_count()} cores"
    hand, alone, here = "by hand", "Dapr alone", "embedded"
    starts = {name: [statistics.median(one) for one in rounds] for name, rounds in taken.starts.items()}
    figures = []
    for label, rates in (("one job", taken.single), (f"{TOGETHER} jobs", taken.together)):
        figures += [
            _pair(f"steps of {label} at a time", "1/s", rates[ONE], rates[BY_HAND], hand, load, at_least=at_least),
            _pair("the same", "1/s", rates[ONE], rates[ALONE], alone, ""),
            _pair("the same", "1/s", rates[ONE], rates[HERE], here, ""),
        ]
    figures.append(_pair("the same, two replicas", "1/s", taken.together[TWO], taken.together[ONE], "one replica", ""))
    figures.append(_pair("job made → first step, p50", "ms", starts[ONE], starts[BY_HAND], hand, "", at_most=at_most))
    figures += [
        _pair("the same", "ms", starts[ONE], starts[name], title, "") for name, title in ((ALONE, alone), (HERE, here))
    ]
    every = {name: [one for part in rounds for one in part] for name, rounds in taken.starts.items()}
    last = {name: percentile(found, 0.99) for name, found in every.items()}
    note = f"{len(every[ONE])} starts; Dapr alone {last[ALONE]:.0f}, embedded {last[HERE]:.0f} ms"
    figures.append(Figure("job made → first step, p99", last[ONE], "ms", last[BY_HAND], f"ms {hand}", note=note))
    return figures


def _pair(
    name: str, unit: str, ours: list[float], theirs: list[float], peer: str, note: str, **bound: float | None
) -> Figure:
    """The pair of rounds in the middle, by its ratio."""
    pairs = sorted(zip(ours, theirs, strict=True), key=lambda pair: pair[0] / pair[1])
    value, other = pairs[len(pairs) // 2]
    ratios = [one / two for one, two in pairs]
    spread = f"{len(pairs)} pairs: {ratios[0]:.2f} to {ratios[-1]:.2f}"
    note = f"{spread}; {note}" if note else spread
    return Figure(name, value, unit, other, f"{unit} {peer}", note=note, **bound)  # type: ignore[arg-type]


# ---- the app's side, in this process


class _Ends:
    """The results of jobs, as the ledger tells them when they end."""

    def __init__(self) -> None:
        self._ends: dict[UUID, asyncio.Future[float]] = {}

    async def hook(self, session: AsyncSession, view: dict[str, Any], argument: dict[str, Any]) -> None:
        if view["state"] in FINAL:
            assert view["state"] == "succeeded", view
            self._of(UUID(view["id"])).set_result(float(view["result"]))

    async def of(self, job: UUID) -> float:
        result = await self._of(job)
        del self._ends[job]
        return result

    def _of(self, job: UUID) -> "asyncio.Future[float]":
        return self._ends.setdefault(job, asyncio.get_running_loop().create_future())


class _Quiet(Hub):
    """Of jobs that are made by hand, nobody but their maker need know."""

    def publish(self, *names: UUID | str | None) -> None:
        pass


@dataclass
class _App:
    database: Database
    ledger: Ledger
    quiet: Ledger
    ends: _Ends
    sidecar: Sidecar

    def by_stepway(self, service: str) -> Way:
        return lambda steps: submitted(self.database, self.ledger, self.ends, service, steps)

    async def by_hand(self, steps: int) -> float:
        async with self.database.transaction() as session:
            await self.quiet.submit(session, JobRequest(JOBS[BY_HAND], steps))
        committed = time.perf_counter()
        claim = await Claims(self.database, self.quiet, uuid4(), 0.0, START_LEASE).take({JOBS[BY_HAND].kind: ([1], 1)})
        assert claim is not None
        instance = f"{claim.job_id}.{claim.fence}"
        data = {"job": str(claim.job_id), "fence": claim.fence, "count": claim.input}
        await self._start("hand_steps", instance, data, wait=False)
        return await self.ends.of(claim.job_id) - committed

    async def alone(self, steps: int) -> float:
        began = time.perf_counter()
        return float(await self._start("plain_steps", str(uuid4()), {"count": steps}, wait=True)) - began

    async def _start(self, name: str, instance: str, data: dict[str, Any], *, wait: bool) -> Any:
        body = json.dumps({"name": name, "instance": instance, "input": data, "wait": wait}).encode()
        async with self.sidecar.post(BY_HAND, "run", body, {}, PATIENCE) as answer:
            answer.raise_for_status()
            return await answer.json()

    async def settled(self) -> None:
        """Until the workflows that have ended are forgotten: that is a way's own work, and no other's."""
        async with asyncio.timeout(PATIENCE):
            while await self._count("SELECT count(*) FROM jobs.instance"):
                await asyncio.sleep(0.1)

    async def joined(self) -> None:
        async with asyncio.timeout(PATIENCE):
            statement = "SELECT count(*) FROM jobs.process WHERE service <> 'app'"
            while await self._count(statement) < sum(count for name, count in REPLICAS.items() if name != BY_HAND):
                await asyncio.sleep(0.1)
            while True:
                with contextlib.suppress(Exception):  # the workflow engine beside it has not started yet
                    await self.alone(1)
                    return
                await asyncio.sleep(0.2)

    async def _count(self, statement: str) -> int:
        async with self.database.statement() as connection:
            return int(await connection.scalar(text(statement)) or 0)


async def submitted(database: Database, ledger: Ledger, ends: _Ends, name: str, steps: int) -> float:
    request = JobRequest(JOBS[name], steps)
    async with database.transaction() as session:
        await ledger.submit(session, request)
    committed = time.perf_counter()
    return await ends.of(request.id) - committed


@asynccontextmanager
async def _app(plane: Dapr, url: str) -> AsyncIterator[_App]:
    database, ends, prefix = Database(url), _Ends(), f"b{uuid4().hex[:8]}-"
    hub = Hub(database)
    await hub.start()
    hooks: dict[str, Hook] = {definition.kind: ends.hook for definition in JOBS.values()}
    ledger = Ledger(database, hub, hooks)
    listener = socket.create_server(("127.0.0.1", 0))
    daprd = plane.sidecar(APP, listener.getsockname()[1], _beside(url, "dapr"), prefix)
    identity = Identity(APP, secret=SECRET)
    sidecar = Sidecar(daprd.address, identity)
    services = [Service(one, (JOBS[one],), remote(RunsPort, one, sidecar, patience=PATIENCE)) for one in (ONE, TWO)]
    dispatcher = Dispatcher(database, ledger, services)
    access = LedgerAccess(database, ledger, {**dispatcher.kinds, JOBS[BY_HAND].kind: BY_HAND})
    served = [Served(JobsPort, access, frozenset(REPLICAS))]
    server = make_server(Starlette(routes=routes(served, identity, SecretStr(daprd.app_token))))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await until_started(server, serving)
        for service, count in REPLICAS.items():
            for number in range(count):
                _start_replica(plane, service, number, _beside(url, "dapr"), prefix)
        await sidecar.wait_ready()
        await dispatcher.start()
        app = _App(database, ledger, Ledger(database, _Quiet(database), hooks), ends, sidecar)
        await app.joined()
        yield app
    finally:
        await dispatcher.close()
        await access.close()
        await sidecar.aclose()
        server.should_exit = server.force_exit = True
        await serving
        await asyncio.to_thread(plane.processes.stop_all)
        await hub.close()
        await database.close()


def _start_replica(plane: Dapr, service: str, number: int, url: str, prefix: str) -> Daprd:
    (port,) = free_ports(1)
    daprd = plane.sidecar(service, port, url, prefix, name=f"daprd-{service}-{number}")
    address = daprd.address
    given = Replica(
        service=service, port=port, http_port=address.http_port, grpc_port=address.grpc_port, token=address.token,
        app_token=daprd.app_token, prefix=prefix, key=service_key(SECRET, service),
    )  # fmt: skip
    command = [sys.executable, "-m", "tests.bench.dapr_worker"]
    environment = {"PYTHONPATH": str(ROOT), GIVEN: given.model_dump_json()}
    plane.processes.start(f"{service}-{number}", command, environment)
    return daprd


@asynccontextmanager
async def _embedded(url: str) -> AsyncIterator[Way]:
    database, ends = Database(url), _Ends()
    hub = Hub(database)
    await hub.start()
    hooks: dict[str, Hook] = {JOBS[HERE].kind: ends.hook}
    ledger, registry = Ledger(database, hub, hooks), Registry()
    registry.add([JOBS[HERE]], None)
    engine = EmbeddedEngine(database, ledger, registry)
    await engine.start()
    try:
        yield lambda steps: submitted(database, ledger, ends, HERE, steps)
    finally:
        await engine.close()
        await hub.close()
        await database.close()


def _beside(url: str, name: str) -> str:
    """Another database of the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
