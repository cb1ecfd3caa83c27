"""Servers that are killed or frozen in the middle of writing."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from stepway.runner.store import Entry
from stepway.runner.store.postgres import PostgresStore
from tests import postgres
from tests.stepway.runner.store.runs import LONG, claim_all, new, until
from tests.stepway.runner.stores import new_database

Spawn = Callable[[], subprocess.Popen[bytes]]


@pytest.fixture
def url() -> Iterator[str]:
    url = new_database()
    yield url
    postgres.server().drop(url)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def spawn(url: str, log: Path) -> Iterator[Spawn]:
    """Starts a server in a process of its own."""
    children: list[subprocess.Popen[bytes]] = []

    def spawn() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.stepway.runner.store.postgres.child", url, str(log)]
        children.append(subprocess.Popen(command, cwd=Path(__file__).parents[5]))
        return children[-1]

    yield spawn
    for child in children:
        child.kill()
        child.wait()


def wait_for_lines(log: Path, count: int) -> list[str]:
    deadline = time.monotonic() + 2 * LONG
    while len(lines := log.read_text().splitlines() if log.exists() else []) < count:
        assert time.monotonic() < deadline, lines[-5:]
        time.sleep(0.02)
    return lines


def check(url: str, lines: list[str]) -> dict[str, int]:
    """All that was acknowledged is there, in whole entries without a gap, and nothing twice; how far each run is."""
    said: dict[str, int] = {}
    for line in lines:
        run_id, _, count = line.partition(" ")
        if count:
            assert int(count) >= said.get(run_id, 0)  # no step backwards over a crash
            said[run_id] = int(count)
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT run_id FROM stepway_runner.handler").fetchall()
        there: dict[str, int] = {}
        for (run_id,) in rows:
            ticks, events = (
                connection.execute(
                    f"SELECT seq, convert_from({data}, 'UTF8')::int FROM stepway_runner.{table} WHERE run_id = %s ORDER BY seq",
                    [run_id],
                ).fetchall()
                for table, data in (("journal", "tick"), ("event", "data"))
            )
            assert ticks == events == [(n, n) for n in range(len(ticks))]
            assert len(ticks) % 2 == 0
            there[run_id] = len(ticks)
    assert all(there[run_id] >= count for run_id, count in said.items())
    return there


def test_killed_servers_leave_whole_entries_and_lose_none(url: str, log: Path, spawn: Spawn) -> None:
    seed = int(os.environ.get("STEPWAY_FAULTS_SEED", "1"))
    chance = random.Random(seed)
    before = 0
    for _ in range(8):
        child = spawn()
        lines = wait_for_lines(log, before + chance.randrange(1, 400))
        time.sleep(chance.random() * 0.02)
        child.kill()
        child.wait()
        before = len(lines)
        check(url, log.read_text().splitlines())
    assert sum(check(url, log.read_text().splitlines()).values()) > 100


async def test_the_runs_of_a_killed_server_are_claimed_by_another(url: str, log: Path, spawn: Spawn) -> None:
    store = PostgresStore(url, lease=3600)  # not by its silence, but by its lock
    await store.start(lambda: None)
    child = spawn()
    wait_for_lines(log, 100)
    child.kill()
    child.wait()
    there = check(url, log.read_text().splitlines())
    saved = await claim_all(store, len(there))
    assert {one.handler.run_id: len(one.ticks) for one in saved} == there
    assert all(one.released is None for one in saved)
    await store.stop()


async def test_a_frozen_server_is_replaced_and_writes_nothing_when_it_returns(
    url: str, log: Path, spawn: Spawn
) -> None:
    store = PostgresStore(url, lease=2)
    await store.start(lambda: None)
    child = spawn()
    wait_for_lines(log, 100)
    child.send_signal(signal.SIGSTOP)
    there = check(url, log.read_text().splitlines())
    saved = await claim_all(store, len(there))
    assert {one.handler.run_id: len(one.ticks) for one in saved} == there
    for one in saved:
        await store.append(one.handler.run_id, Entry(len(one.ticks), ["ours"]))
    lines = len(log.read_text().splitlines())
    child.send_signal(signal.SIGCONT)

    async def goes_on() -> bool:
        return len(log.read_text().splitlines()) > lines + 100

    await until(goes_on)
    said = log.read_text().splitlines()[lines:]
    assert "lost" in said
    late = {line.partition(" ")[0] for line in said[said.index("lost") :]}
    assert not late & {one.handler.run_id for one in saved}
    with psycopg.connect(url) as connection:
        for one in saved:
            rows = connection.execute(
                "SELECT convert_from(tick, 'UTF8') FROM stepway_runner.journal WHERE run_id = %s ORDER BY seq",
                [one.handler.run_id],
            ).fetchall()
            assert [row[0] for row in rows] == [*one.ticks, "ours"]
    await store.stop()


async def test_nobody_is_taken_for_dead_over_a_clock(url: str) -> None:
    """All that the database's clock has written says that it is years later, or earlier: ownership looks at none of it."""
    losses: list[int] = []
    first, second = PostgresStore(url), PostgresStore(url)
    for store in (first, second):
        await store.start(lambda: losses.append(1))
    await new(first, "h", "r")
    for years in (-10, 20):
        with psycopg.connect(url) as connection:
            connection.execute(
                "UPDATE stepway_runner.handler SET started_at = started_at + %(y)s * interval '1 year',"
                " updated_at = updated_at + %(y)s * interval '1 year'",
                {"y": years},
            )
        assert await second.claim({"flow": 10}) == []
        await first.append("r", Entry(0 if years < 0 else 1, ["tick"]))
    await first.stop()
    (saved,) = await claim_all(second, 1)
    assert saved.ticks == ["tick", "tick"]
    await second.stop()
    assert losses == []
