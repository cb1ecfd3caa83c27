"""Replicas of a service over Dapr: work spreads over them, that of one that dies moves, and versions roll.

Sidecars that find each other by mDNS, as here, take one that is gone for there during a minute: what needs several to go is
for `make test-faults`.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from uuid import UUID

import pytest
from sqlalchemy import text

from shared.db.engine import Database
from shared.jobs.dapr import worker
from shared.jobs.declare import RetryPolicy, job, step
from shared.jobs.run import Run, Step
from tests.shared.jobs.engines import PATIENCE
from tests.shared.jobs.fleet import Fleet, fleet
from tests.testbed.dapr import session_dapr

QUICK = RetryPolicy(attempts=5, delay=0.01, max_delay=0.02)


@dataclass
class Shared:
    """What all replicas see: who did what of which job, and the gate at which steps wait."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    done: list[tuple[str, str, UUID]] = field(default_factory=list)

    def by(self, what: str) -> Counter[str]:
        return Counter(who for who, did, _ in self.done if did == what)

    async def reached(self, what: str, jobs: list[UUID]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not set(jobs) <= {job for _, did, job in self.done if did == what}:
                await asyncio.sleep(0.02)


@dataclass(frozen=True)
class Tools:
    """Those of one replica."""

    name: str
    shared: Shared

    def note(self, what: str, job: UUID) -> None:
        self.shared.done.append((self.name, what, job))


@step("Begin", retry=QUICK)
async def begin(ctx: Step, number: int) -> int:
    ctx.tools.note("begin", ctx.job_id)
    return number + 1


@step("Hold", retry=QUICK)
async def hold(ctx: Step, number: int) -> int:
    ctx.tools.note("hold", ctx.job_id)
    try:
        await ctx.tools.shared.gate.wait()
    except asyncio.CancelledError:
        ctx.tools.note("stopped", ctx.job_id)
        raise
    ctx.tools.note("held", ctx.job_id)
    return number + 1


@step("End", retry=QUICK)
async def end_old(ctx: Step, number: int) -> str:
    ctx.tools.note("end_old", ctx.job_id)
    return f"old {number}"


@step("End newly", retry=QUICK)
async def end_new(ctx: Step, number: int) -> str:
    ctx.tools.note("end_new", ctx.job_id)
    return f"new {number}"


@job("rolled", steps=[begin, hold, end_old], slots=20)
async def old(run: Run, number: int) -> str:
    result: str = await run.step(end_old, await run.step(hold, await run.step(begin, number)))
    return result


@job("rolled", version=2, steps=[begin, end_new], slots=20)
async def new(run: Run, number: int) -> str:
    result: str = await run.step(end_new, await run.step(begin, number))
    return result


async def ends(made: Fleet, jobs: list[UUID], *results: str) -> None:
    views = [await made.until(one) for one in jobs]
    assert [view["state"] for view in views] == ["succeeded"] * len(jobs), views
    assert {view["result"] for view in views} == set(results)
    for one in jobs:
        events = [row.seq for row in await made.events(one)]
        assert events == list(range(1, len(events) + 1))


async def test_work_spreads_and_moves_from_one_that_dies(database: Database, pytestconfig: pytest.Config) -> None:
    async with fleet(session_dapr(pytestconfig), database, [old]) as made:
        shared = Shared()
        first = await made.join("first", [old], Tools("first", shared))
        await made.join("second", [old], Tools("second", shared))
        jobs = [await made.submit(old, number) for number in range(12)]
        await shared.reached("hold", jobs)
        before = shared.by("hold")
        assert set(before) == {"first", "second"}
        moves = [job for who, did, job in shared.done if (who, did) == ("first", "hold")]
        begun = shared.by("begin")
        await first.die()
        async with asyncio.timeout(PATIENCE):
            while not set(moves) <= {job for who, did, job in shared.done if (who, did) == ("second", "hold")}:
                await asyncio.sleep(0.02)
        shared.gate.set()
        await ends(made, jobs, *(f"old {number + 2}" for number in range(12)))
        assert shared.by("begin") == begun  # what had succeeded is not done again
        assert shared.by("held") == {"second": 12}
        assert set(shared.by("end_old")) == {"second"}
        await made.until_none("SELECT count(*) FROM jobs.instance")


async def test_work_survives_the_loss_of_all_that_dapr_keeps(database: Database, pytestconfig: pytest.Config) -> None:
    async with fleet(session_dapr(pytestconfig), database, [old]) as made:
        shared = Shared()
        first = await made.join("first", [old], Tools("first", shared))
        jobs = [await made.submit(old, number) for number in range(3)]
        await shared.reached("hold", jobs)
        await first.die()  # and with it what its sidecar remembers
        async with database.statement() as connection:
            await connection.execute(text("TRUNCATE public.dapr_state"))
        await made.join("second", [old], Tools("second", shared))
        shared.gate.set()
        await ends(made, jobs, *(f"old {number + 2}" for number in range(3)))
        assert shared.by("begin") == {"first": 3}
        assert shared.by("held") == {"second": 3}
        await made.until_none("SELECT count(*) FROM jobs.instance")


async def test_what_is_cut_off_from_the_app_stops_by_itself(
    database: Database, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the app gives the runs to others, for their steps must not be done by two at once."""
    monkeypatch.setattr(worker, "SILENT", 1.0)
    async with fleet(session_dapr(pytestconfig), database, [old]) as made:
        shared = Shared()
        await made.join("first", [old], Tools("first", shared))
        jobs = [await made.submit(old, number) for number in range(3)]
        await shared.reached("hold", jobs)
        assert shared.by("stopped") == {}
        async with made.cut_off():
            await shared.reached("stopped", jobs)
            assert {(await made.view(job))["state"] for job in jobs} == {"running"}
            shared.gate.set()
            async with database.statement() as connection:  # half a minute goes by
                await connection.execute(text("UPDATE jobs.job SET lease_until = clock_timestamp()"))
        await ends(made, jobs, *(f"old {number + 2}" for number in range(3)))
        assert shared.by("begin") == shared.by("stopped") == shared.by("held") == {"first": 3}


async def test_a_version_waits_until_every_replica_knows_it(database: Database, pytestconfig: pytest.Config) -> None:
    async with fleet(session_dapr(pytestconfig), database, [old, new]) as made:
        shared = Shared()
        leaves = await made.join("leaves", [old], Tools("leaves", shared))
        waiting = [await made.submit(new, number) for number in range(3)]
        later = [await made.submit(old, 0)]
        await shared.reached("hold", later)  # made after the new ones, which are passed over
        await made.join("upgraded", [old, new], Tools("upgraded", shared))
        later += [await made.submit(old, 0)]
        await shared.reached("hold", later)
        assert {(await made.view(one))["state"] for one in waiting} == {"pending"}
        shared.gate.set()
        await ends(made, later, "old 2")
        await leaves.leave()
        await ends(made, waiting, *(f"new {number + 1}" for number in range(3)))
        assert shared.by("end_new") == {"upgraded": 3}


@pytest.mark.faults(sample=0)
async def test_versions_roll_with_the_replicas(database: Database, pytestconfig: pytest.Config) -> None:
    async with fleet(session_dapr(pytestconfig), database, [old, new]) as made:
        shared = Shared()
        leaves = await made.join("leaves", [old], Tools("leaves", shared))
        dies = await made.join("dies", [old], Tools("dies", shared))
        in_flight = [await made.submit(old, number) for number in range(6)]
        await shared.reached("hold", in_flight)
        waiting = [await made.submit(new, number) for number in range(3)]
        later = [await made.submit(old, 0)]
        await shared.reached("hold", later)  # made after the new ones, which are passed over
        await made.join("upgraded", [old, new], Tools("upgraded", shared))
        later += [await made.submit(old, 0)]
        await shared.reached("hold", later)
        await leaves.leave()
        later += [await made.submit(old, 0)]
        await shared.reached("hold", later)
        assert {(await made.view(one))["state"] for one in waiting} == {"pending"}
        assert shared.by("end_new") == {}
        await dies.die()
        await ends(made, waiting, *(f"new {number + 1}" for number in range(3)))
        assert shared.by("end_new") == {"upgraded": 3}
        shared.gate.set()
        await ends(made, [*in_flight, *later], *(f"old {number + 2}" for number in range(6)))
        assert sum(shared.by("end_old").values()) == 9
        assert set(shared.by("end_old")) == {"upgraded"}
        await made.until_none("SELECT count(*) FROM jobs.instance")


@pytest.mark.faults(sample=0)
async def test_a_replica_that_is_rolled_back_loses_nothing(database: Database, pytestconfig: pytest.Config) -> None:
    """New runs are in flight when one comes that does not know them: they wait again until it has gone."""
    async with fleet(session_dapr(pytestconfig), database, [old, new]) as made:
        shared = Shared()
        upgraded = await made.join("upgraded", [old, new], Tools("upgraded", shared))
        first = [await made.submit(old, number) for number in range(3)]
        await shared.reached("hold", first)
        back = await made.join("back", [old], Tools("back", shared))
        waiting = [await made.submit(new, number) for number in range(3)]
        await upgraded.leave()
        await shared.reached("hold", [await made.submit(old, 9)])
        shared.gate.set()
        await ends(made, first, *(f"old {number + 2}" for number in range(3)))
        assert {(await made.view(one))["state"] for one in waiting} == {"pending"}
        await made.join("again", [old, new], Tools("again", shared))
        await back.leave()
        await ends(made, waiting, *(f"new {number + 1}" for number in range(3)))
