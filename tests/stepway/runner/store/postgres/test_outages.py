"""A database that goes away, comes back, has no room, or is none that runs can be kept in."""

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from stepway.postgres.embedded import EmbeddedPostgres
from stepway.runner.store import NewRun, StoreUnavailable
from stepway.runner.store.postgres import PostgresStore, schema
from tests import postgres
from tests.stepway.runner.store.runs import LONG, entry, new, numbers, until


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server of the test's own, started."""
    server = EmbeddedPostgres(tmp_path / "db")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def url() -> Iterator[str]:
    """An empty database."""
    url = postgres.server().clone("template0")
    yield url
    postgres.server().drop(url)


@pytest.fixture
async def store(own: EmbeddedPostgres) -> AsyncIterator[PostgresStore]:
    own_url = own._url("stepway")
    store = PostgresStore(own_url)
    await store.start(lambda: None)
    yield store
    await store.stop()


@pytest.mark.parametrize("politely", [True, False])
async def test_a_database_that_restarts_under_load_costs_no_entry(
    own: EmbeddedPostgres, store: PostgresStore, politely: bool
) -> None:
    runs = [f"r{n}" for n in range(16)]
    for run_id in runs:
        await new(store, f"h{run_id}", run_id)
    stopping = asyncio.Event()
    made: list[str] = []

    async def write(run_id: str) -> int:
        at = 0
        while not stopping.is_set():
            await store.append(run_id, entry(at, at))
            at += 1
        return at

    async def create() -> None:
        n = 0
        while not stopping.is_set():
            n += 1
            try:
                async with asyncio.timeout(LONG):
                    await store.create(NewRun(f"new{n}", "flow", f"new{n}", None, owned=False))
                made.append(f"new{n}")
            except StoreUnavailable:
                continue

    writers = [asyncio.ensure_future(write(run_id)) for run_id in runs]
    creating = asyncio.ensure_future(create())
    for _ in range(2):
        await asyncio.sleep(0.3)
        if not politely:
            await asyncio.to_thread(_kill_a_session, own._url("stepway"))
            await asyncio.sleep(0.3)
        await asyncio.to_thread(own.stop)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(own.start)
    before = len(made)

    async def goes_on() -> bool:
        return len(made) > before + 3

    await until(goes_on)
    stopping.set()
    counts = await asyncio.gather(*writers)
    await creating
    for run_id, count in zip(runs, counts, strict=True):
        assert count > 1
        assert await numbers(store, run_id) == list(range(count))

    async def only_what_was_said_is_there() -> bool:
        page, _ = await store.page(None, None, None, None)
        return {one.handler_id for one in page} == {*made, *(f"h{run_id}" for run_id in runs)}

    await until(only_what_was_said_is_there)
    assert await store.healthy() is None


def _kill_a_session(url: str) -> None:
    """The server then ends all sessions and recovers, as after a crash."""
    with psycopg.connect(url) as connection:
        os.kill(connection.info.backend_pid, signal.SIGKILL)


async def test_while_the_database_is_away_who_asks_is_told(own: EmbeddedPostgres, store: PostgresStore) -> None:
    await new(store, "h", "r")
    await asyncio.to_thread(own.stop)
    waiting = store.append("r", entry(0, 0))
    async with asyncio.timeout(LONG):
        with pytest.raises(StoreUnavailable):
            await new(store, "h2", "r2")
        with pytest.raises(StoreUnavailable):
            await store.send("h", "event", None)
        with pytest.raises(StoreUnavailable):
            await store.get("h")
    assert "not available" in (await store.healthy() or "")
    assert not waiting.done()
    await asyncio.to_thread(own.start)
    async with asyncio.timeout(LONG):
        await waiting
    assert await numbers(store, "r") == [0]


async def test_a_full_disk_refuses_new_runs_and_keeps_entries_waiting(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160m,mode=0755", "stepway-test", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    server = EmbeddedPostgres(disk / "db")
    try:
        store = PostgresStore(server.start())
        await store.start(lambda: None)
        await _fill_and_empty(store, server, disk)
        await store.stop()
    finally:
        server.stop()
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


async def _fill_and_empty(store: PostgresStore, server: EmbeddedPostgres, disk: Path) -> None:
    await new(store, "h", "r")
    written = [store.append("r", entry(0, 0))]
    await written[0]
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            pass
    at = 1
    while await store.healthy() is None:  # what the tables have allocated is used up first
        written.append(store.append("r", entry(at, at, state="x" * 100_000, ticks=100, events=100)))
        at += 100
        await asyncio.wait(written[-1:], timeout=0.5)
    assert "No space left" in (await store.healthy() or "")
    assert not written[-1].done()
    with pytest.raises(StoreUnavailable):
        await new(store, "large", start=os.urandom(1 << 22).hex())
    filler.unlink()
    if not server.running:  # without room for its log it stops, and whoever runs it starts it again
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)
    async with asyncio.timeout(LONG):
        await asyncio.gather(*written)
    assert await numbers(store, "r") == list(range(at))

    async def healthy() -> bool:
        return await store.healthy() is None

    await until(healthy)
    await new(store, "later")


async def test_servers_that_start_at_once_make_the_tables_once(url: str) -> None:
    stores = [PostgresStore(url) for _ in range(5)]
    await asyncio.gather(*[store.start(lambda: None) for store in stores])
    await asyncio.gather(*[new(store, f"h{n}") for n, store in enumerate(stores)])
    await asyncio.gather(*[store.stop() for store in stores])
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT changes FROM stepway_runner.version").fetchall() == [(len(schema.CHANGES),)]
        assert connection.execute("SELECT count(*) FROM stepway_runner.server").fetchone() == (0,)


async def test_tables_of_a_newer_version_are_refused(url: str) -> None:
    store = PostgresStore(url)
    await store.start(lambda: None)
    await store.stop()
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE stepway_runner.version SET changes = 1000")
    with pytest.raises(StoreUnavailable, match=r"newer version \(1000\)"):
        await PostgresStore(url).start(lambda: None)


async def test_a_user_who_may_not_make_tables_is_told_what_is_missing(url: str) -> None:
    role = f"role_{threading.get_native_id()}_{urlsplit(url).path[-8:]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role}")
    try:
        limited = f"{url}{'&' if '?' in url else '?'}options=-crole%3D{role}"
        with pytest.raises(StoreUnavailable, match="grant CREATE on the database"):
            await PostgresStore(limited).start(lambda: None)
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"DROP ROLE {role}")


def test_a_wrong_url_is_refused_without_its_password() -> None:
    with pytest.raises(StoreUnavailable, match="URL") as refused:
        PostgresStore("postgresql://me:hidden@host:port:port/%%%")
    assert "hidden" not in str(refused.value)


async def test_a_database_that_is_not_there_is_named() -> None:
    with pytest.raises(StoreUnavailable, match="not available") as refused:
        await PostgresStore("postgres://me:hidden@127.0.0.1:1/none").start(lambda: None)
    assert "hidden" not in str(refused.value)


async def test_a_server_that_is_too_old_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "OLDEST", 99)
    with pytest.raises(StoreUnavailable, match=r"PostgreSQL 99 or newer is needed, and this is \d+"):
        await PostgresStore(url).start(lambda: None)
