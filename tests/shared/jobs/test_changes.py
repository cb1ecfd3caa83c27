"""What attempts report in one moment is one statement: taken or refused one by one, told in order, seen together."""

import asyncio

import psycopg
import pytest
from sqlalchemy import text

from shared.jobs.attempts import Begun, CancelRequested
from shared.jobs.ledger import StaleFence
from tests.shared.jobs.test_ledger import Bench, bench, plain

__all__ = ["bench"]


async def told(bench: Bench) -> list[tuple[str, str, str]]:
    """Of each event of a step: its transaction, the key, the state."""
    statement = "SELECT xmin::text, data->>'key', data->>'state' FROM jobs.event WHERE type = 'step' ORDER BY seq"
    async with bench.database.statement() as connection:
        return [(row[0], row[1], row[2]) for row in await connection.execute(text(statement))]


async def test_a_success_and_the_next_begin_are_one_transaction_in_their_order(bench: Bench) -> None:
    job = await bench.submit(plain, 1)
    claim = await bench.take(await bench.claimer())
    first = await bench.begin(claim)
    report = bench.attempts.succeed(job, claim.fence, "one", first.token, 7)
    second = await bench.begin(claim, "two")
    await report

    begun, ended, next_begun = await told(bench)
    assert (begun[1:], ended[1:], next_begun[1:]) == (("one", "running"), ("one", "succeeded"), ("two", "running"))
    assert begun[0] != ended[0] == next_begun[0]
    assert second.number == 1
    assert [event.seq for event in await bench.events(job)] == [1, 2, 3, 4, 5]
    assert (await bench.view(job))["percent"] == 50


async def test_branches_that_begin_in_one_moment_are_one_transaction(bench: Bench) -> None:
    job = await bench.submit(plain, 1)
    claim = await bench.take(await bench.claimer())
    keys = [f"branch-{number}" for number in range(20)]
    begun = await asyncio.gather(*(bench.begin(claim, key) for key in keys))
    await asyncio.gather(
        *(bench.attempts.succeed(job, claim.fence, key, one.token, key) for key, one in zip(keys, begun, strict=True))
    )

    events = await told(bench)
    assert [event[1:] for event in events] == [(key, state) for state in ("running", "succeeded") for key in keys]
    assert len({event[0] for event in events}) == 2
    assert await bench.attempts.results(job) == {key: key for key in keys}
    assert [step["key"] for step in (await bench.view(job))["steps"]] == ["one", "two", *keys]


async def test_of_a_group_each_is_taken_or_refused_by_itself(bench: Bench) -> None:
    job = await bench.submit(plain, 1)
    claim = await bench.take(await bench.claimer())
    good, stale = await bench.begin(claim, "good"), await bench.begin(claim, "stale")
    again = await bench.begin(claim, "stale")  # as a retry of the step would
    await bench.cancel(job)
    reports = [
        bench.attempts.succeed(job, claim.fence, "good", good.token, 1),
        bench.attempts.succeed(job, claim.fence, "stale", stale.token, 2),
        bench.attempts.begin(job, claim.fence, "two", "two", 1.0),
        bench.attempts.begin(job, claim.fence - 1, "two", "two", 1.0),
    ]
    given = await asyncio.gather(*reports, return_exceptions=True)
    assert [type(one) for one in given] == [type(None), StaleFence, CancelRequested, StaleFence]
    assert await bench.attempts.results(job) == {"good": 1}
    assert again.number == 2


async def test_two_changes_of_one_step_in_one_moment_come_one_after_the_other(bench: Bench) -> None:
    """A service that got no answer in time begins again while its first call is still on its way."""
    job = await bench.submit(plain, 1)
    claim = await bench.take(await bench.claimer())
    first, second = await asyncio.gather(bench.begin(claim), bench.begin(claim))
    assert (first.number, second.number) == (1, 2)
    with pytest.raises(StaleFence):
        await bench.attempts.succeed(job, claim.fence, "one", first.token, 1)
    await bench.attempts.succeed(job, claim.fence, "one", second.token, 2)
    assert await bench.attempts.results(job) == {"one": 2}


async def test_what_the_database_refuses_spoils_nothing_beside_it(bench: Bench) -> None:
    job = await bench.submit(plain, 1)
    claim = await bench.take(await bench.claimer())
    bad, good = await bench.begin(claim, "bad"), await bench.begin(claim, "good")
    beyond = bench.attempts.fail(job, claim.fence, "bad", bad.token, {"code": "x"}, state="pending", after=1e300)
    given = await asyncio.gather(
        beyond, bench.attempts.succeed(job, claim.fence, "good", good.token, 1), return_exceptions=True
    )
    assert isinstance(given[0], psycopg.Error)
    assert given[1] is None
    assert await bench.attempts.results(job) == {"good": 1}


async def test_a_begin_that_nobody_waits_for_any_more_is_not_written(bench: Bench) -> None:
    job = await bench.submit(plain, 1)
    claim = await bench.take(await bench.claimer())
    first = await bench.begin(claim)
    report = asyncio.ensure_future(bench.attempts.succeed(job, claim.fence, "one", first.token, 7))
    begin = asyncio.ensure_future(bench.attempts.begin(job, claim.fence, "two", "two", 1.0))
    begin.cancel()
    await asyncio.wait([report, begin])
    assert begin.cancelled()
    assert [(step["key"], step["state"]) for step in (await bench.view(job))["steps"]] == [
        ("one", "succeeded"),
        ("two", "pending"),
    ]
    assert isinstance(await bench.attempts.begin(job, claim.fence, "two", "two", 1.0), Begun)
