"""Each truth that a probe tells, by breaking what it is about."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest

from shared.db.engine import Database
from shared.jobs.declare import Registry, job, step
from shared.jobs.engine import EmbeddedEngine
from shared.jobs.hub import Hub
from shared.jobs.ledger import JobRequest, Ledger
from shared.jobs.run import Run, Step
from shared.telemetry.ledger import LedgerNow
from shared.telemetry.metrics import registry
from shared.telemetry.probes import Health, Patient, Readiness
from shared.telemetry.server import AT_ONCE, ProbeServer
from tests.services.app.test_database_away import away

PATIENCE = 60.0


@step("Nothing")
async def nothing(ctx: Step, number: int) -> int:
    return number


@job("quiet")
async def quiet(run: Run, number: int) -> int:
    result: int = await run.step(nothing, number)
    return result


class Turning:
    """An event loop in a thread of its own, which a test may hang, with its probes."""

    def __init__(self, stalled: float) -> None:
        self.health = Health(stalled=stalled)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.loop.call_soon_threadsafe(self.health.watch_loop)
        self.health.starting = None
        self.server = ProbeServer(self.health, "127.0.0.1", 0)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.server.port}{path}", headers=headers, trust_env=False, timeout=30)

    def close(self) -> None:
        self.server.close()
        self.loop.call_soon_threadsafe(self.health.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


@pytest.fixture
def turning() -> Iterator[Callable[[float], Turning]]:
    made: list[Turning] = []

    def one(stalled: float) -> Turning:
        made.append(Turning(stalled))
        return made[-1]

    yield one
    for turn in made:
        turn.close()


def until(look: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_loop_that_hangs_is_told_by_the_thread_beside_it(turning: Callable[[float], Turning]) -> None:
    turn, release = turning(3.0), threading.Event()
    until(lambda: turn.get("/livez").status_code == 200)
    turn.loop.call_soon_threadsafe(release.wait, PATIENCE)
    until(lambda: turn.get("/livez").status_code == 503)
    assert turn.get("/livez").text == "the event loop hangs\n"
    release.set()
    until(lambda: turn.get("/livez").status_code == 200)


def test_readiness_and_metrics_need_the_loop_to_answer(turning: Callable[[float], Turning]) -> None:
    turn = turning(600.0)

    async def missing() -> list[str]:
        return []

    async def exposition() -> bytes:
        return b"stepway_up 1\n"

    assert turn.get("/metrics").status_code == 503
    turn.health.missing, turn.health.exposition = missing, exposition
    until(lambda: turn.get("/readyz").status_code == 200)
    assert turn.get("/metrics").text == "stepway_up 1\n"
    release = threading.Event()
    turn.loop.call_soon_threadsafe(release.wait, PATIENCE)
    assert (turn.get("/readyz").status_code, turn.get("/readyz").text) == (503, "no answer in time\n")
    release.set()
    until(lambda: turn.get("/readyz").status_code == 200)


def test_what_the_start_is_busy_with_is_told(turning: Callable[[float], Turning]) -> None:
    turn = turning(600.0)
    turn.health.starting = "migrating the database"
    for path in ("/startupz", "/readyz"):
        assert (turn.get(path).status_code, turn.get(path).text) == (503, "migrating the database\n")
    assert turn.get("/livez").status_code == 200
    turn.health.starting = None
    assert turn.get("/startupz").status_code == 200


def test_only_what_there_is_is_answered_under_our_own_name(turning: Callable[[float], Turning]) -> None:
    turn = turning(600.0)
    assert turn.get("/etc/passwd").status_code == 404
    assert turn.get("/livez", host="rebound.example").status_code == 421
    assert httpx.post(f"http://127.0.0.1:{turn.server.port}/livez", trust_env=False).status_code == 501


def test_clients_that_say_nothing_do_not_keep_others_out_for_long(turning: Callable[[float], Turning]) -> None:
    turn = turning(600.0)
    silent = [socket.create_connection(("127.0.0.1", turn.server.port)) for _ in range(AT_ONCE)]

    def answered() -> bool:
        try:
            return turn.get("/livez").status_code == 200
        except httpx.TransportError:
            return False

    until(answered)
    for one in silent:
        one.close()


async def test_a_check_that_hangs_is_asked_once_and_waited_for_in_vain() -> None:
    calls, hang = 0, asyncio.Event()

    async def check() -> bool:
        nonlocal calls
        calls += 1
        await hang.wait()
        return True

    async def well() -> bool:
        return True

    async def broken() -> bool:
        raise OSError("a fault")

    ready = Readiness({"database": check, "objects": well, "engine": broken}, seconds=0.05)
    assert await ready.missing() == ["database", "engine"]
    assert await ready.missing() == ["database", "engine"]
    assert calls == 1
    hang.set()
    ready = Readiness({"database": check}, seconds=PATIENCE)
    assert await ready.missing() == []
    assert await Patient(well)() is True


@pytest.fixture
async def engine(database: Database) -> AsyncIterator[EmbeddedEngine]:
    hub = Hub(database)
    await hub.start()
    jobs = Registry()
    jobs.add([quiet], None)
    made = EmbeddedEngine(database, Ledger(database, hub), jobs, lease=2.0)
    yield made
    await made.close()
    await hub.close()


@pytest.mark.parametrize("name", ["engine-claims", "engine-reaper", "engine-cancels"])
async def test_an_engine_whose_task_has_ended_is_dead(engine: EmbeddedEngine, name: str) -> None:
    assert (engine.dead(), engine.is_joined) == ([], False)
    await engine.start()
    assert (engine.dead(), engine.is_joined) == ([], True)
    (task,) = (one for one in asyncio.all_tasks() if one.get_name() == name)
    task.cancel()
    await asyncio.wait({task})
    assert engine.dead() == [name]
    await engine.close()
    assert (engine.dead(), engine.is_joined) == ([], False)


async def test_an_engine_whose_heartbeat_has_died_is_dead(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    await engine.start()

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("shared.jobs.heartbeat.Heartbeat._renew", broken)
    async with asyncio.timeout(PATIENCE):
        while not engine.dead():
            await asyncio.sleep(0.02)
    assert engine.dead() == ["engine-heartbeat"]


async def test_an_engine_lives_through_the_loss_of_its_database_and_of_its_lease(
    engine: EmbeddedEngine, database_url: str
) -> None:
    await engine.start()
    before = engine.claims.process
    lost = registry().get_sample_value("stepway_leases_lost_total") or 0.0
    async with away(database_url):
        for _ in range(20):
            assert engine.dead() == []
            await asyncio.sleep(0.05)
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute("DELETE FROM jobs.process")  # taken for dead
    async with asyncio.timeout(PATIENCE):
        while engine.claims.process == before or not engine.is_joined:
            assert engine.dead() == []
            await asyncio.sleep(0.02)
    assert registry().get_sample_value("stepway_leases_lost_total") == lost + 1


async def test_what_the_ledger_has_is_asked_of_it_now_and_then(database: Database, database_url: str) -> None:
    now, hub = 1000.0, Hub(database)
    seen = LedgerNow(database, lambda: ["quiet", "other"], clock=lambda: now)
    known = registry(seen)

    def value(name: str, **labels: str) -> float | None:
        return known.get_sample_value(f"stepway_{name}", labels)

    assert value("database_up") == 0
    ledger = Ledger(database, hub)
    async with database.transaction() as session:
        made = [await ledger.submit(session, JobRequest(quiet, 1)) for _ in range(3)]
        await ledger.cancel(session, UUID(made[0]["id"]))
    async with database.statement() as connection:
        await connection.exec_driver_sql("UPDATE jobs.job SET run_at = clock_timestamp() - interval '1 hour'")
        await connection.exec_driver_sql(
            "UPDATE jobs.job SET state = 'cleanup_required' WHERE id = %s", (made[1]["id"],)
        )  # fmt: skip
    await seen.refresh()
    assert value("database_up") == 1
    assert value("jobs", kind="quiet", state="pending") == 1
    assert value("jobs", kind="quiet", state="cleanup_required") == 1
    assert value("jobs", kind="other", state="running") == 0
    assert 3600 <= (value("job_queue_age_seconds", kind="quiet") or 0) < 3600 + 600
    assert value("job_queue_age_seconds", kind="other") == 0
    async with away(database_url):
        await seen.refresh()  # not asked again so soon
        assert value("database_up") == 1
        now += 60
        await seen.refresh()
        assert (value("database_up"), value("jobs", kind="quiet", state="pending")) == (0, None)
    await seen.refresh()
    assert value("database_up") == 1
    await hub.close()
