"""Speed of the job engine on a durable embedded PostgreSQL, with DBOS as a peer in the same run.

    python -m tests.bench.engine [--peer PYTHON]

prints one JSON object. `PYTHON` is an interpreter that has what locks/bench.txt names; without it the peer is left out.
Both run the same job: steps that do nothing, one after the other, each result recorded durably before the next.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from shared.db import migrate
from shared.db.engine import Database
from shared.jobs.declare import ONCE, Registry, job, step
from shared.jobs.engine import EmbeddedEngine
from shared.jobs.feed import Feeds
from shared.jobs.hub import Hub
from shared.jobs.ledger import FINAL, JobRequest, Ledger
from shared.jobs.run import Run, Step
from stepway.postgres.embedded import EmbeddedPostgres

STEPS = 50  # of one job
ROUNDS = 3  # ours and the peer in turn; the best of each counts, as others may use the machine
CONCURRENT = 10
READERS = 500
_FIRST_STEP: dict[str, float] = {}


@step("Do nothing", retry=ONCE)
async def nothing(ctx: Step, number: int) -> int:
    return number + 1


@step("Tell when it runs", retry=ONCE)
async def note(ctx: Step, name: str) -> None:
    _FIRST_STEP[name] = time.perf_counter()


@job("bench_steps", slots=CONCURRENT)
async def bench_steps(run: Run, number: int) -> int:
    for index in range(STEPS):
        number = await run.step(nothing, number, key=f"step-{index}")
    return number


@job("bench_start", slots=CONCURRENT)
async def bench_start(run: Run, name: str) -> None:
    await run.step(note, name)


@dataclass
class Bench:
    database: Database
    ledger: Ledger
    hub: Hub
    ends: dict[UUID, asyncio.Future[None]] = field(default_factory=dict)

    async def submit(self, definition: Any, argument: Any, topic: UUID | None = None) -> UUID:
        request = JobRequest(definition, argument, topic=topic)
        async with self.database.transaction() as session:
            await self.ledger.submit(session, request)
        return request.id

    async def ended(self, job_id: UUID) -> None:
        await self.ends.setdefault(job_id, asyncio.get_running_loop().create_future())
        del self.ends[job_id]


@asynccontextmanager
async def bench(url: str) -> AsyncIterator[Bench]:
    database = Database(url)
    hub = Hub(database)
    await hub.start()
    ends: dict[UUID, asyncio.Future[None]] = {}

    async def note_end(session: AsyncSession, view: dict[str, Any], argument: dict[str, Any]) -> None:
        if view["state"] in FINAL:
            assert view["state"] == "succeeded", view
            end = ends.setdefault(UUID(view["id"]), asyncio.get_running_loop().create_future())
            end.set_result(None)

    ledger = Ledger(database, hub, {"bench_steps": note_end, "bench_start": note_end})
    registry = Registry()
    registry.add([bench_steps, bench_start], None)
    engine = EmbeddedEngine(database, ledger, registry)
    await engine.start()
    try:
        yield Bench(database, ledger, hub, ends)
    finally:
        await engine.close()
        await hub.close()
        await database.close()


async def steps_per_second(bench: Bench, jobs: int, concurrent: int) -> float:
    """`jobs` jobs of `STEPS` steps, `concurrent` at a time: steps per second from the first submission to the last end."""
    left = list(range(jobs))

    async def client() -> None:
        while left:
            await bench.ended(await bench.submit(bench_steps, left.pop()))

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrent)))
    return jobs * STEPS / (time.perf_counter() - began)


async def start_latency(bench: Bench, jobs: int) -> list[float]:
    """Milliseconds from the commit that makes a job to its first step's first line, one job at a time."""
    taken = []
    for _ in range(jobs):
        name = uuid4().hex
        job_id = await bench.submit(bench_start, name)
        committed = time.perf_counter()
        await bench.ended(job_id)
        taken.append(max(_FIRST_STEP.pop(name) - committed, 0.0) * 1000)
    return taken


async def event_latency(bench: Bench, readers: int, events: int) -> list[float]:
    """Milliseconds from the commit of an event until each of the readers of its topic has it."""
    feeds = Feeds(bench.database, bench.hub)
    topic = uuid4()
    sent: dict[int, float] = {}
    taken: list[float] = []
    ready = asyncio.Semaphore(0)

    async def read() -> None:
        ready.release()
        async for batch in feeds.follow("topic", topic):
            now = time.perf_counter()
            taken.extend((now - sent[event.number]) * 1000 for event in batch)
            if batch[-1].number == events:
                return

    tasks = [asyncio.create_task(read()) for _ in range(readers)]
    for _ in range(readers):
        await ready.acquire()
    for number in range(1, events + 1):
        async with bench.database.transaction() as session:
            await bench.ledger.emit_topic(session, topic, "workflow", {"number": number})
            sent[number] = time.perf_counter()
        await asyncio.sleep(0.05)
    await asyncio.gather(*tasks)
    return taken


def spread(taken: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(taken, n=100)
    return {"p50": round(cuts[49], 2), "p99": round(cuts[98], 2), "samples": len(taken)}


async def measure_steps(url: str) -> dict[str, float]:
    async with bench(url) as one:
        await steps_per_second(one, 10, 5)  # warm: connections, prepared statements
        return {
            "steps_per_second_1": round(await steps_per_second(one, 16, 1)),
            "steps_per_second_10": round(await steps_per_second(one, 40, CONCURRENT)),
        }


async def measure_latencies(url: str) -> dict[str, Any]:
    async with bench(url) as one:
        await start_latency(one, 20)
        return {
            "start_latency_ms": spread(await start_latency(one, 200)),
            "event_to_readers_ms": {"readers": READERS, **spread(await event_latency(one, READERS, 40))},
        }


def measure_peer(python: str, url: str) -> dict[str, float]:
    """DBOS' figures for the same job on a database of the same server."""
    script = Path(__file__).with_name("engine_dbos.py")
    result = subprocess.run([python, script, url, str(STEPS)], check=True, capture_output=True, text=True, timeout=300)
    figures: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return figures


def best(rounds: list[dict[str, float]]) -> dict[str, Any]:
    return {name: max(figures[name] for figures in rounds) for name in rounds[0]}


def run(peer: str | None) -> dict[str, Any]:
    """All figures, on a server of their own."""
    ours, theirs = [], []
    with tempfile.TemporaryDirectory(prefix="stepway-bench-") as folder:
        server = EmbeddedPostgres(Path(folder) / "postgres")
        try:
            url = server.start()
            migrate.upgrade(url)
            for _ in range(ROUNDS):
                ours.append(asyncio.run(measure_steps(url)))
                if peer is not None:
                    theirs.append(measure_peer(peer, url))
            figures: dict[str, Any] = {"stepway": {**best(ours), **asyncio.run(measure_latencies(url))}}
        finally:
            server.stop()
    if theirs:
        figures["dbos"] = best(theirs)
        for name, value in figures["dbos"].items():
            figures[f"{name}_of_dbos"] = round(figures["stepway"][name] / value, 2)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter with DBOS")
    json.dump(run(parser.parse_args().peer), sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
