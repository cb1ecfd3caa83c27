"""Runs that begin before they are durable, as nobody is told of them before their ends: all of it is kept, or nothing."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest
from workflows.events import StartEvent

from stepway.runner.config import Config
from stepway.runner.runs import Runs
from stepway.runner.store import Handler, NewRun, StoreUnavailable
from stepway.runner.store.postgres import PostgresStore
from tests import postgres
from tests.stepway.runner import flows
from tests.stepway.runner.stores import new_database

LONG = 30.0


@pytest.fixture
async def url() -> AsyncIterator[str]:
    made = new_database()
    yield made
    postgres.server().drop(made)


@pytest.fixture
async def runs(url: str) -> AsyncIterator[Runs]:
    made = Runs(PostgresStore(url), Config())
    made.add("hello", flows.Hello())
    made.add("asks", flows.Asks())
    await made.start_up()
    yield made
    await made.shut_down(0)


async def begin(runs: Runs, name: str = "hello") -> Handler:
    return await runs.start(name, start_event=StartEvent(), told=False)


async def handlers(runs: Runs) -> list[Handler]:
    return (await runs.store.page(None, None, None, None))[0]


async def change(url: str, statement: str) -> None:
    """Not on the loop, whose open transaction it may have to wait for."""
    await asyncio.to_thread(_change, url, statement)


def _change(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


async def test_what_has_ended_is_kept_whole(runs: Runs) -> None:
    ended = await asyncio.gather(*[runs.finished(await begin(runs), LONG) for _ in range(20)])
    kept = {one.handler_id: one for one in await handlers(runs)}
    assert {one.handler_id for one in ended} == kept.keys()
    for one in ended:
        assert one.status == "completed"
        assert kept[one.handler_id].result == one.result
        events = await runs.store.events(one.run_id, -1, 100, internal=True)
        assert [event.seq for event in events] == list(range(len(events)))
        assert "StopEvent" in events[-1].data


async def test_one_that_goes_on_is_kept_while_it_does(runs: Runs) -> None:
    handler = await begin(runs, "asks")
    async with asyncio.timeout(LONG):
        while (found := await runs.store.get(handler.handler_id)) is None:
            await asyncio.sleep(0.01)
    assert found.status == "running"
    assert await runs.cancel(handler.handler_id, purge=False) == "cancelled"


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        (
            "ALTER TABLE stepway_runner.handler ADD CONSTRAINT nothing_fits CHECK (number < 0) NOT VALID",
            "ALTER TABLE stepway_runner.handler DROP CONSTRAINT nothing_fits",
        ),
        (
            "ALTER TABLE stepway_runner.handler RENAME TO elsewhere",
            "ALTER TABLE stepway_runner.elsewhere RENAME TO handler",
        ),
    ],
    ids=["refused", "broken"],
)
async def test_what_cannot_be_kept_has_not_been(runs: Runs, url: str, broken: str, mended: str) -> None:
    before = await runs.finished(await begin(runs), LONG)
    await change(url, broken)
    with pytest.raises(StoreUnavailable):
        await runs.finished(await begin(runs), LONG)
    await change(url, mended)
    async with asyncio.timeout(LONG):
        while await runs.store.healthy() is not None:
            await asyncio.sleep(0.05)
    after = await runs.finished(await begin(runs), LONG)
    assert {one.handler_id for one in await handlers(runs)} == {before.handler_id, after.handler_id}


async def test_what_was_not_written_when_a_server_was_taken_for_dead_never_is(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepway.runner.store.postgres.store.SOON", LONG / 3)  # after all of this
    monkeypatch.setattr("stepway.runner.store.postgres.store.ANSWER", LONG)
    store, lost = PostgresStore(url), asyncio.Event()
    await store.start(lost.set)
    try:
        _, made = store.begin(NewRun("a", "hello", "run-a", None))
        await change(url, "DELETE FROM stepway_runner.beat; DELETE FROM stepway_runner.server")
        other = await store.create(NewRun("b", "hello", "run-b", None))  # which runs into the fence, and goes on
        assert lost.is_set()
        with pytest.raises(StoreUnavailable):
            await made
        assert (await store.page(None, None, None, None))[0] == [other]
    finally:
        await store.stop()


async def test_a_server_that_was_taken_for_dead_keeps_nothing_or_all(runs: Runs, url: str) -> None:
    await change(url, "DELETE FROM stepway_runner.beat; DELETE FROM stepway_runner.server")
    told = await asyncio.gather(*[runs.finished(await begin(runs), LONG) for _ in range(10)], return_exceptions=True)
    kept = [one for one in told if isinstance(one, Handler)]
    assert all(isinstance(one, Handler | StoreUnavailable) for one in told), told
    async with asyncio.timeout(LONG):
        while True:
            try:
                kept.append(await runs.finished(await begin(runs), LONG))
                break
            except StoreUnavailable:
                await asyncio.sleep(0.05)
    assert {one.handler_id for one in await handlers(runs)} == {one.handler_id for one in kept}
    assert {one.status for one in await handlers(runs)} == {"completed"}
