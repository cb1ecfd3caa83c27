"""The embedded engine where things meet: a cancel and an end, a lost answer of the database, jobs that misbehave."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from shared.db.engine import Database
from shared.jobs.attempts import Attempts
from shared.jobs.claims import Claims
from shared.jobs.declare import ONCE, Registry, RetryPolicy, job, step
from shared.jobs.lane import Lane
from shared.jobs.ledger import Ledger
from shared.jobs.outcomes import Permanent
from shared.jobs.run import Run, Step, StepFailed
from tests.shared.jobs.engines import PATIENCE, Harness, embedded

QUICK = RetryPolicy(attempts=2, delay=0.01)


class Tools:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.gate = asyncio.Event()
        self.counts: Counter[str] = Counter()


async def _undo(ctx: Step, number: int, result: int | None) -> None:
    ctx.tools.log.append(f"undo {ctx.key} {result}")


@step("Do it", retry=QUICK, undo=_undo)
async def do(ctx: Step, number: int) -> int:
    ctx.tools.log.append(ctx.key)
    return number + 1


@step("Fail", retry=ONCE, undo=_undo)
async def fail(ctx: Step, number: int) -> int:
    raise Permanent("broken", "No.")


@step("Hold", retry=ONCE)
async def hold(ctx: Step, number: int) -> int:
    ctx.tools.log.append(ctx.key)
    await ctx.tools.gate.wait()
    return number


@step("Let a cancellation escape", retry=QUICK)
async def escape(ctx: Step, number: int) -> int:
    ctx.tools.counts["escape"] += 1
    raise asyncio.CancelledError


@job("short")
async def short(run: Run, number: int) -> int:
    return int(await run.step(do, number))


@job("detour")
async def detour(run: Run, number: int) -> int:
    try:
        await run.step(fail, number)
    except StepFailed:
        await run.step(do, number)
    return int(await run.step(hold, number))


@job("escaping")
async def escaping(run: Run, number: int) -> int:
    return int(await run.step(escape, number))


@job("unspeakable")
async def unspeakable(run: Run, number: int) -> Any:
    return object()


@job("changed", steps=[do])
async def changed(run: Run, number: int) -> int:
    tools = run._tools  # type: ignore[attr-defined]  # a job that is not deterministic, as one of an older version would be
    tools.counts["driven"] += 1
    if tools.counts["driven"] == 1:
        await run.step(do, number)
    return int(await run.step(hold, number))


@job("narrow", slots=1, deadline=2.0)
async def narrow(run: Run, number: int) -> int:
    return int(await run.step(hold, number))


JOBS = [short, detour, escaping, unspeakable, changed, narrow]


@pytest.fixture
def tools() -> Tools:
    return Tools()


@pytest.fixture
def registry(tools: Tools) -> Registry:
    registry = Registry()
    registry.add(JOBS, tools)
    return registry


def before(monkeypatch: pytest.MonkeyPatch, kind: type, method: str, call: Callable[..., Any]) -> None:
    """Have `call(*arguments)` awaited before each call of a method."""
    original = getattr(kind, method)

    async def wrapped(self: Any, *args: Any, **more: Any) -> Any:
        await call(*args)
        return await original(self, *args, **more)

    monkeypatch.setattr(kind, method, wrapped)


async def test_a_cancel_in_the_moment_of_the_end_undoes(
    database: Database, registry: Registry, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with embedded(database, registry) as engine:
        cancelled: list[UUID] = []

        async def cancel(session: Any, job_id: UUID, state: str) -> None:
            if state == "succeeded" and not cancelled:
                cancelled.append(job_id)
                await engine.cancel(job_id)
                await asyncio.sleep(0.05)  # for the engine to hear of it

        before(monkeypatch, Ledger, "transition", cancel)
        view = await engine.until(await engine.submit(short, 1))
    assert view["state"] == "cancelled"
    assert tools.log == ["do", "undo do 2"]


async def test_a_cancel_in_the_moment_of_a_failure_undoes(
    database: Database, registry: Registry, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with embedded(database, registry) as engine:
        asked: list[UUID] = []

        async def cancel(session: Any, job_id: UUID, state: str) -> None:
            if state == "failed" and not asked:
                asked.append(job_id)
                await engine.cancel(job_id)

        before(monkeypatch, Ledger, "transition", cancel)
        view = await engine.until(await engine.submit(unspeakable, 1))
    assert (view["state"], view["error"]) == ("cancelled", None)


async def test_what_was_done_after_a_caught_failure_is_undone(
    database: Database, registry: Registry, tools: Tools
) -> None:
    async with embedded(database, registry) as engine:
        job_id = await engine.submit(detour, 1)
        await engine.until_step(job_id, "hold", "running")
    async with embedded(database, registry) as engine:  # another life: what was caught is remembered
        await engine.until_step(job_id, "hold", "running")
        await engine.cancel(job_id)
        view = await engine.until(job_id)
    assert view["state"] == "cancelled"
    assert tools.log[-2:] == ["undo do 2", "undo fail None"]


async def test_a_cancellation_from_within_a_step_is_its_failure(
    database: Database, registry: Registry, tools: Tools
) -> None:
    async with embedded(database, registry) as engine:
        view = await engine.until(await engine.submit(escaping, 1))
    assert (view["state"], view["error"]["code"]) == ("failed", "internal")
    assert tools.counts["escape"] == 2


async def test_a_result_that_cannot_be_written_fails_the_job(database: Database, registry: Registry) -> None:
    async with embedded(database, registry) as engine:
        view = await engine.until(await engine.submit(unspeakable, 1))
    assert (view["state"], view["error"]["code"]) == ("failed", "internal")


async def test_what_the_job_no_longer_comes_to_needs_a_hand(database: Database, registry: Registry) -> None:
    async with embedded(database, registry) as engine:
        job_id = await engine.submit(changed, 1)
        await engine.until_step(job_id, "hold", "running")
    async with embedded(database, registry) as engine:
        await engine.until_step(job_id, "hold", "running")
        await engine.cancel(job_id)
        view = await engine.until(job_id)
    assert view["state"] == "cleanup_required"
    assert view["error"]["left"] == ["do"]


@pytest.mark.parametrize("state", ["running", "succeeded"])
async def test_a_lost_answer_of_the_database_is_no_failure_of_the_step(
    database: Database, registry: Registry, tools: Tools, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    original = Lane.all
    lost = 0

    async def lose(self: Lane, statement: Any, values: Any) -> Any:
        nonlocal lost
        rows = await original(self, statement, values)
        if lost < 2 and any(change["state"] == state for change in json.loads(values.get("changes", "[]"))):
            lost += 1
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        return rows

    monkeypatch.setattr(Lane, "all", lose)
    async with embedded(database, registry) as engine:
        view = await engine.until(await engine.submit(short, 1))
    assert lost == 2
    assert (view["state"], view["result"]) == ("succeeded", 2)
    assert tools.log == ["do"]


async def test_a_claim_whose_answer_was_lost_is_given_up_and_made_again(
    database: Database, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Claims.take
    lost = False

    async def lose(self: Claims, slots: Any) -> Any:
        nonlocal lost
        claims = await original(self, slots)
        if claims and not lost:
            lost = True
            raise OperationalError("COMMIT", None, Exception("the answer was lost"))
        return claims

    monkeypatch.setattr(Claims, "take", lose)
    async with embedded(database, registry) as engine:
        view = await engine.until(await engine.submit(short, 1))
    assert lost
    assert view["state"] == "succeeded"


async def test_an_end_that_could_not_be_written_is_tried_again(
    database: Database, registry: Registry, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = 0

    async def break_twice(session: Any, job_id: UUID, state: str) -> None:
        nonlocal faults
        if state == "succeeded" and faults < 2:
            faults += 1
            raise OperationalError("UPDATE", None, Exception("the database is away"))

    before(monkeypatch, Ledger, "transition", break_twice)
    async with embedded(database, registry) as engine:
        view = await engine.until(await engine.submit(short, 1))
    assert faults == 2
    assert view["state"] == "succeeded"
    assert tools.log == ["do"]


async def test_a_process_whose_name_was_buried_comes_back(
    database: Database, registry: Registry, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.jobs.engine.LEAVE_SECONDS", PATIENCE)
    async with embedded(database, registry, lease=1.0) as engine:
        job_id = await engine.submit(detour, 1)
        await engine.until_step(job_id, "hold", "running")
        async with database.statement() as connection:
            await connection.execute(text("DELETE FROM jobs.process"))
        tools.gate.set()
        view = await engine.until(job_id)
    assert view["state"] == "succeeded"
    async with database.statement() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM jobs.process")) == 0


async def test_a_deadline_ends_what_runs_and_what_never_had_a_slot(database: Database, registry: Registry) -> None:
    async with embedded(database, registry) as engine:
        jobs = [await engine.submit(narrow, number) for number in range(3)]
        views = [await engine.until(one) for one in jobs]
    assert {view["error"]["code"] for view in views} == {"deadline_exceeded"}
    assert {step["state"] for view in views for step in view["steps"]} == {"cancelled"}


async def test_reports_do_not_queue_behind_a_full_pool(database: Database, registry: Registry) -> None:
    async with embedded(database, registry) as engine:
        job_id = await engine.submit(detour, 1)
        await engine.until_step(job_id, "do", "succeeded")
        attempts = Attempts(database.url, engine.ledger.hub)
        async with asyncio.timeout(PATIENCE):
            held = [await database.statements.connect() for _ in range(16)]  # the pool and its overflow
            assert await attempts.results(job_id) == {"do": 2}
            for connection in held:
                await connection.close()
        await attempts.close()


async def test_an_engine_that_joins_late_is_told_of_what_others_submit(
    database: Database, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hubs over one database: the notification crosses processes; nobody would look again in time without it."""
    monkeypatch.setattr("shared.jobs.engine.POLL_SECONDS", 10 * PATIENCE)
    async with embedded(database, Registry()) as other, embedded(database, registry) as engine:
        first: Harness = other
        view = await engine.until(await first.submit(short, 1))
    assert view["state"] == "succeeded"
