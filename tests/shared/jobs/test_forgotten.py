"""Dapr's own state of a run: gone when the run is over, however it ended; and when it is lost too early, no run is."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
from sqlalchemy import text

from shared.db.engine import Database
from shared.jobs.declare import Registry
from tests.shared.jobs.engines import Harness, over_dapr
from tests.shared.jobs.test_conformance import (
    JOBS,
    Number,
    World,
    asking,
    gated,
    lone_crash,
    sequence,
    sides,
    sleeper,
    undoing,
)
from tests.testbed.dapr import session_dapr

ONE = Number(value=1)
STATE = "SELECT count(*) FROM public.dapr_state WHERE key LIKE '%{job}%'"


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def engine(database: Database, world: World, pytestconfig: pytest.Config) -> AsyncIterator[Harness]:
    registry = Registry()
    registry.add(JOBS, world)
    async with over_dapr(session_dapr(pytestconfig), database, registry) as made:
        yield made


async def rows(engine: Harness, statement: str) -> int:
    async with engine.database.statement() as connection:
        return int(await connection.scalar(text(statement)) or 0)


async def kept(engine: Harness, job: UUID) -> int:
    return await rows(engine, STATE.format(job=job))


async def wipe(engine: Harness) -> None:
    """Lose all that Dapr knows of workflows."""
    async with engine.database.statement() as connection:
        await connection.execute(text("TRUNCATE public.dapr_state"))


async def test_nothing_of_what_is_over_is_left(engine: Harness, world: World) -> None:
    world.gate.set()
    jobs = {
        "succeeded": await engine.submit(sequence, ONE), "failed": await engine.submit(lone_crash, ONE),
        "parked": await engine.submit(sleeper, Number(value=15)), "woken": await engine.submit(asking, Number(value=0)),
        "beside": await engine.submit(sides, ONE),
    }  # fmt: skip
    await engine.until(jobs["woken"], "waiting")
    await engine.send(jobs["woken"], "answer", {"value": 5})
    ended = {name: (await engine.until(one))["state"] for name, one in jobs.items()}
    assert ended == {**dict.fromkeys(jobs, "succeeded"), "failed": "failed"}
    world.gate.clear()
    cancelled = jobs["cancelled"] = await engine.submit(gated, ONE)
    await engine.until_step(cancelled, "gate", "running")
    assert await kept(engine, cancelled) > 0  # so there is something to look for
    await engine.cancel(cancelled)
    assert (await engine.until(cancelled))["state"] == "cancelled"
    waits = jobs["cancelled waiting"] = await engine.submit(asking, Number(value=0))
    await engine.until(waits, "waiting")
    await engine.cancel(waits)
    assert (await engine.until(waits))["state"] == "cancelled"
    world.fail["double"] = -1
    undone = jobs["undone"] = await engine.submit(undoing, ONE)
    assert (await engine.until(undone))["state"] == "failed"
    world.fail["undo_add"] = -1
    left = jobs["left"] = await engine.submit(undoing, ONE)
    assert (await engine.until(left))["state"] == "cleanup_required"
    world.fail.clear()
    await engine.retry(undone)
    await engine.until(undone, "succeeded")
    await until_none(engine, "SELECT count(*) FROM jobs.instance")
    for name, one in jobs.items():
        assert await kept(engine, one) == 0, name
    assert await rows(engine, "SELECT count(*) FROM public.dapr_state") == 0


async def until_none(engine: Harness, statement: str) -> None:
    async with asyncio.timeout(60):
        while await rows(engine, statement):
            await asyncio.sleep(0.1)


async def test_a_run_that_dapr_loses_while_a_step_works_is_given_away_again(engine: Harness, world: World) -> None:
    job = await engine.submit(gated, ONE)
    await engine.until_step(job, "gate", "running")
    assert await kept(engine, job) > 0
    await wipe(engine)
    world.gate.set()
    view = await engine.until(job)
    assert (view["state"], view["result"]) == ("succeeded", {"value": 4})
    assert world.calls["add"] == 1  # its result was in the ledger by then
    await until_none(engine, "SELECT count(*) FROM jobs.instance")


async def test_a_run_that_dapr_loses_while_it_waits_goes_on(engine: Harness, world: World) -> None:
    parked, beside = await engine.submit(asking, Number(value=0)), await engine.submit(sides, ONE)
    await engine.until(parked, "waiting")
    await engine.until_step(beside, "gate", "running")
    await wipe(engine)
    await engine.send(parked, "answer", {"value": 5})
    world.gate.set()
    assert (await engine.until(parked))["result"] == {"value": 5}
    assert (await engine.until(beside))["state"] == "succeeded"
    await until_none(engine, "SELECT count(*) FROM jobs.instance")


async def test_a_cancel_finds_a_run_that_dapr_has_lost(engine: Harness, world: World) -> None:
    job = await engine.submit(gated, ONE)
    await engine.until_step(job, "gate", "running")
    await wipe(engine)
    await engine.cancel(job)
    assert (await engine.until(job))["state"] == "cancelled"
    assert world.calls["undo_add"] == world.calls["undo_gate"] == 1
    await until_none(engine, "SELECT count(*) FROM jobs.instance")
