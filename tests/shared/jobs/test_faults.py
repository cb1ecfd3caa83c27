"""Jobs whose processes are killed, frozen or cut off from the database, at every point that matters.

The processes are real (`tests.shared.jobs.worker`). What must hold whatever happens: the job ends, and once; a step
whose success is recorded never runs again; the effects are as if nothing had happened; events have no gap.
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from shared.db import migrate
from shared.db.engine import Database
from shared.jobs.hub import Hub
from shared.jobs.ledger import FINAL, Ledger
from stepway.postgres.embedded import EmbeddedPostgres
from tests.shared.jobs.engines import PATIENCE, Harness
from tests.shared.jobs.worker import World, failing, journey, poisoned, trapped

ROOT = Path(__file__).parents[3]
SHARED = 100 if os.environ.get("STEPWAY_FAULTS") == "all" else 40  # jobs

STEPS = ["first", "left", "right", "flaky", "last"]
FORWARD = [
    "before transition running#1", "after transition running#1",
    *(f"{when} {write} {key}#1" for key in STEPS for write in ("begin", "succeed") for when in ("before", "after")),
    *(f"{when} {key}#1" for key in STEPS for when in ("enter", "leave")),
    "before fail flaky#1", "after fail flaky#1", "enter flaky#2", "leave flaky#2",
    *(f"{when} {write} nap#1" for write in ("begin", "wait") for when in ("before", "after")),
    "before transition waiting#1", "after transition waiting#1", "before succeed nap#1", "after succeed nap#1",
    "before take_signal go#1", "after take_signal go#1", "before succeed go#1", "after succeed go#1",
    "before transition succeeded#1", "after transition succeeded#1",
]  # fmt: skip
UNDONE = ["first", "left", "right", "fail"]
BACKWARD = [
    "before fail fail#1", "after fail fail#1", "after transition running#2",
    *(f"{when} undo {key}#1" for key in UNDONE for when in ("enter", "leave")),
    *(f"{when} {write} {key}#1" for key in UNDONE for write in ("begin_undo", "undone") for when in ("before", "after")),
    "before transition failed#1", "after transition failed#1",
]  # fmt: skip


class Workers:
    """The processes of one test; whatever is left of them is killed at its end."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.world = World(folder)
        self._started: list[subprocess.Popen[str]] = []

    async def start(self, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.shared.jobs.worker", self._url, str(self.folder), *more]
        with (self.folder / "log").open("a") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
        self._started.append(process)
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "ready\n"
        return process

    def stop(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def trace(self) -> list[tuple[int, str]]:
        lines = (self.folder / "trace").read_text().splitlines()
        return [(int(line.split(" ", 1)[0]), line.split(" ", 1)[1]) for line in lines]

    def effects(self, job: UUID) -> set[str]:
        return {path.name.split(".")[1] for path in (self.folder / "effects").glob(f"{job}.*")}


@pytest.fixture
def workers(database_url: str, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(database_url, tmp_path)
    yield made
    made.stop()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Short enough for the socket to be in it: then the server has the same URL after a restart."""
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        yield Path(folder) / "pg"


@asynccontextmanager
async def watching(database: Database) -> AsyncIterator[Harness]:
    """A ledger without an engine: this process makes and watches jobs, and runs none."""
    hub = Hub(database)
    await hub.start()
    try:
        yield Harness(database, Ledger(database, hub))
    finally:
        await hub.close()


@pytest.fixture
async def ledger(database: Database) -> AsyncIterator[Harness]:
    async with watching(database) as harness:
        yield harness


async def death(process: subprocess.Popen[str], timeout: float = PATIENCE) -> None:
    code = await asyncio.wait_for(asyncio.to_thread(process.wait), timeout)
    assert code == -signal.SIGKILL


async def check_whole(harness: Harness, job: UUID, view: dict[str, Any]) -> None:
    """It has ended once, and its events tell so without a gap."""
    events = await harness.events(job)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    ends = [event.data["state"] for event in events if event.type == "job" and event.data["state"] in FINAL]
    assert ends == [view["state"]]
    assert events[-1].data["state"] == view["state"]
    assert not [step["key"] for step in view["steps"] if step["state"] == "running"]
    async with harness.database.statement() as connection:
        row = (
            await connection.execute(
                text("SELECT job.worker, run.state FROM jobs.job JOIN jobs.run ON job_id = id WHERE id = :id"),
                {"id": job},
            )
        ).one()
    assert (row.worker, row.state) == (None, view["state"])


def check_nothing_twice(trace: list[tuple[int, str]]) -> None:
    """What is recorded as done is not done again, by whomever."""
    done: set[str] = set()
    for _, point in trace:
        word, *name = point.split("#")[0].split(" ")
        if word == "enter" and name[0] != "undo":
            assert name[-1].split(".")[-1] not in done, point
        if (word, *name[:1]) == ("after", "succeed"):
            done.add(name[1])


@pytest.mark.faults
@pytest.mark.parametrize("host", ["same", "other"])
@pytest.mark.parametrize("point", FORWARD)
async def test_a_killed_process_is_taken_over(ledger: Harness, workers: Workers, point: str, host: str) -> None:
    job = await ledger.submit(journey, 1)
    await ledger.send(job, "go", 100)
    more = ["--host", "elsewhere"] if host == "other" else []
    first = await workers.start("--at", named(point, job), *more)
    await death(first)
    second = await workers.start()
    view = await ledger.until(job)
    assert (view["state"], view["result"]) == ("succeeded", 108)
    assert workers.effects(job) == set(STEPS)
    check_nothing_twice(workers.trace())
    await check_whole(ledger, job, view)
    assert first.pid in {pid for pid, _ in workers.trace()}
    assert second.poll() is None


@pytest.mark.faults
@pytest.mark.parametrize("point", BACKWARD)
async def test_a_process_killed_while_it_undoes(ledger: Harness, workers: Workers, point: str) -> None:
    job = await ledger.submit(failing, 1)
    await death(await workers.start("--at", named(point, job)))
    await workers.start()
    view = await ledger.until(job)
    assert (view["state"], view["error"]["code"]) == ("failed", "broken")
    assert {step["state"] for step in view["steps"]} == {"undone"}
    assert workers.effects(job) == set()
    check_nothing_twice(workers.trace())
    await check_whole(ledger, job, view)


@pytest.mark.faults
@pytest.mark.parametrize("point", ["enter left#1", "after begin flaky#1", "after wait nap#1", "before succeed last#1"])
async def test_a_cancelled_job_is_undone_by_whoever_is_left(ledger: Harness, workers: Workers, point: str) -> None:
    job = await ledger.submit(journey, 1)
    await ledger.send(job, "go", 100)
    await death(await workers.start("--at", named(point, job)))
    await ledger.cancel(job)
    await workers.start()
    view = await ledger.until(job)
    assert view["state"] == "cancelled"
    assert workers.effects(job) == set()
    await check_whole(ledger, job, view)


@pytest.mark.faults(sample=1)
@pytest.mark.parametrize("point", ["enter first#1", "leave left#1", "before succeed flaky#1", "after begin last#1"])
async def test_a_frozen_process_is_refused_when_it_goes_on(ledger: Harness, workers: Workers, point: str) -> None:
    job = await ledger.submit(journey, 1)
    await ledger.send(job, "go", 100)
    first = await workers.start("--at", named(point, job), "--signal", "STOP")
    names = await processes(ledger)
    await asyncio.to_thread(os.waitid, os.P_PID, first.pid, os.WSTOPPED | os.WNOWAIT)
    await workers.start()
    view = await ledger.until(job)
    before = await ledger.events(job)
    first.send_signal(signal.SIGCONT)
    async with asyncio.timeout(PATIENCE):  # until it is back, under a new name
        while len(await processes(ledger) - names) < 2:
            await asyncio.sleep(0.1)
    assert (view["state"], view["result"]) == ("succeeded", 108)
    assert await ledger.events(job) == before
    again = await ledger.submit(journey, 2)
    await ledger.send(again, "go", 0)
    assert (await ledger.until(again))["state"] == "succeeded"
    await check_whole(ledger, job, view)


async def test_a_step_that_takes_its_process_down_each_time_fails(ledger: Harness, workers: Workers) -> None:
    job = await ledger.submit(poisoned, 1)
    for _ in range(4):
        process = await workers.start()
        await death(process)
    await workers.start()
    view = await ledger.until(job)
    assert (view["state"], view["error"]["code"]) == ("failed", "worker_lost")
    await check_whole(ledger, job, view)


async def test_an_undo_that_takes_its_process_down_each_time_needs_a_hand(ledger: Harness, workers: Workers) -> None:
    job = await ledger.submit(trapped, 1)
    for _ in range(3):
        await death(await workers.start())
    await workers.start()
    view = await ledger.until(job)
    assert (view["state"], view["error"]["code"], view["error"]["left"]) == (
        "cleanup_required",
        "undo_failed",
        ["trap"],
    )
    assert view["error"]["message"] == "Cannot be undone: The process was lost each time while this undo ran."
    assert workers.effects(job) == {"first", "trap"}  # what came before the one that is left may be in use by it
    await check_whole(ledger, job, view)

    workers.world.mend()
    await ledger.retry(job)
    again = await ledger.until(job)
    assert (again["state"], again["error"]["code"]) == ("failed", "broken")
    assert {step["key"]: step["state"] for step in again["steps"]} == {
        "first": "undone",
        "trap": "undone",
        "fail": "undone",
    }
    assert workers.effects(job) == set()


async def test_a_process_that_stops_in_good_order_leaves_its_runs_at_once(ledger: Harness, workers: Workers) -> None:
    job = await ledger.submit(journey, 1)
    first = await workers.start("--host", "elsewhere")
    await ledger.until_step(job, "go", "running")
    first.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(first.wait, PATIENCE) == 0
    assert await processes(ledger) == set()
    async with ledger.database.statement() as connection:  # no lease is waited for
        assert await connection.scalar(text("SELECT worker IS NULL FROM jobs.job"))
    await workers.start()
    await ledger.send(job, "go", 100)
    view = await ledger.until(job)
    assert view["result"] == 108
    await check_whole(ledger, job, view)


async def test_the_database_restarts_in_the_midst(tmp_path: Path, short_folder: Path) -> None:
    server = EmbeddedPostgres(short_folder, durable=False)
    url = server.start()
    workers = Workers(url, tmp_path / "work")
    try:
        migrate.upgrade(url)
        database = Database(url)
        async with watching(database) as ledger:
            await workers.start()
            jobs = [await ledger.submit(journey, number) for number in range(6)]
            for job in jobs:
                await ledger.until_step(job, "first", "succeeded")
            await asyncio.to_thread(server.stop)
            await asyncio.sleep(3)  # longer than the lease
            assert await asyncio.to_thread(server.start) == url
            await database.engine.dispose()
            for number, job in enumerate(jobs):
                await ledger.send(job, "go", 100)
                view = await ledger.until(job)
                assert (view["state"], view["result"]) == ("succeeded", 106 + 2 * number)
                await check_whole(ledger, job, view)
        await database.close()
    finally:
        workers.stop()
        server.stop()


@pytest.mark.timeout(600)
@pytest.mark.faults(sample=1)
@pytest.mark.parametrize("seed", range(4))
async def test_two_processes_share_many_jobs_and_one_is_killed(ledger: Harness, workers: Workers, seed: int) -> None:
    chance = random.Random(seed)
    await workers.start()
    jobs = {}
    later = []
    victim = await workers.start()
    for number in range(SHARED):
        kind = chance.choice([journey, failing])
        job = await ledger.submit(kind, number)
        jobs[job] = number
        if kind is journey and chance.random() < 0.7:
            await ledger.send(job, "go", 1)
        elif kind is journey:
            later.append(job)
        if chance.random() < 4 / SHARED:
            victim.kill()
            await death(victim)
            victim = await workers.start()
    for job in later:
        await ledger.send(job, "go", 1)
    for job, number in jobs.items():
        view = await ledger.until(job, timeout=2 * PATIENCE)
        if view["kind"] == "journey":
            assert (view["state"], view["result"]) == ("succeeded", 2 * number + 7), view
            assert workers.effects(job) == set(STEPS)
        else:
            assert (view["state"], view["error"]["code"]) == ("failed", "broken")
            assert workers.effects(job) == set()
        await check_whole(ledger, job, view)


def named(point: str, job: UUID) -> str:
    """Points within steps carry the job's id, as the effects do."""
    word, *more = point.split(" ")
    if word in ("enter", "leave"):
        more[-1] = f"{job}.{more[-1]}"
    return " ".join([word, *more])


async def processes(harness: Harness) -> set[UUID]:
    async with harness.database.statement() as connection:
        return set((await connection.execute(text("SELECT id FROM jobs.process"))).scalars())
