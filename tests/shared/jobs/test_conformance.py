"""What every engine must do with a job, written against the interface of `shared.jobs.run` and the ledger alone."""

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel
from sqlalchemy import text

from shared.db.engine import Database
from shared.errors import Problem
from shared.jobs.declare import ONCE, Registry, RetryPolicy, job, step
from shared.jobs.ledger import JobRequest
from shared.jobs.outcomes import Permanent, Retry
from shared.jobs.run import Run, Step, StepFailed
from tests.shared.jobs.engines import ENGINES, PATIENCE, Start, starter

QUICK = RetryPolicy(attempts=3, delay=0.01, max_delay=0.02)


class Number(BaseModel):
    value: int


class World:
    """What the steps of these jobs touch, so that a test can see what was done and steer it."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.log: list[str] = []
        self.gate = asyncio.Event()
        self.fail: dict[str, int] = {}

    async def reached(self, name: str) -> None:
        async with asyncio.timeout(PATIENCE):
            while name not in self.log:
                await asyncio.sleep(0.005)

    def touch(self, name: str) -> None:
        self.calls[name] += 1
        self.log.append(name)
        if self.fail.get(name, 0) > 0:
            self.fail[name] -= 1
            raise Retry("flaky", f"{name} is not ready yet.")
        if self.fail.get(name, 0) < 0:
            raise Permanent("broken", f"{name} cannot be done.")


async def _undo_add(ctx: Step, argument: Number, result: Number | None) -> None:
    ctx.tools.touch("undo_add")


async def _undo_gate(ctx: Step, argument: Number, result: Number | None) -> None:
    ctx.tools.touch("undo_gate")


@step("Add one", retry=QUICK, undo=_undo_add)
async def add(ctx: Step, number: Number) -> Number:
    ctx.tools.touch("add")
    ctx.progress(50, "half")
    return Number(value=number.value + 1)


@step("Double", retry=QUICK)
async def double(ctx: Step, number: Number) -> Number:
    ctx.tools.touch("double")
    return Number(value=number.value * 2)


@step("Wait at the gate", retry=QUICK, undo=_undo_gate, key="gate")
async def pass_gate(ctx: Step, number: Number) -> Number:
    ctx.tools.touch("gate")
    ctx.progress(50, "half")
    await ctx.tools.gate.wait()
    return number


@step("Take too long", retry=RetryPolicy(attempts=2, delay=0.01, timeout=0.05))
async def slow(ctx: Step, number: Number) -> Number:
    ctx.tools.touch("slow")
    await asyncio.sleep(30)
    return number


@step("Return too much", retry=ONCE)
async def huge(ctx: Step, number: Number) -> str:
    return "x" * 70_000


@step("Break", retry=ONCE)
async def crash(ctx: Step, number: Number) -> Number:
    raise RuntimeError("secret detail")


@job("sequence", steps=[add, double])
async def sequence(run: Run, number: Number) -> Number:
    result: Number = await run.step(double, await run.step(add, number))
    return result


@job("gated", steps=[add, pass_gate, double])
async def gated(run: Run, number: Number) -> Number:
    number = await run.step(add, number)
    number = await run.step(pass_gate, number)
    result: Number = await run.step(double, number)
    return result


@job("undoing", steps=[add, double], undo_on_failure=True)
async def undoing(run: Run, number: Number) -> Number:
    return await sequence.fn(run, number)  # type: ignore[no-any-return]


@job("lone_slow", steps=[slow])
async def lone_slow(run: Run, number: Number) -> Number:
    result: Number = await run.step(slow, number)
    return result


@job("lone_huge", steps=[huge])
async def lone_huge(run: Run, number: Number) -> None:
    await run.step(huge, number)


@job("lone_crash", steps=[crash])
async def lone_crash(run: Run, number: Number) -> None:
    await run.step(crash, number)


@job("catching")
async def catching(run: Run, number: Number) -> Number:
    try:
        await run.step(crash, number)
    except StepFailed:
        pass  # it goes another way
    await run.sleep(1.2, key="pause")  # parks: driven again from the start afterwards
    result: Number = await run.step(add, number)
    return result


@job("wide")
async def wide(run: Run, number: Number) -> Number:
    results = await run.gather(*(run.step(add, Number(value=i), key=f"add-{i}") for i in range(5)))
    return Number(value=sum(one.value for one in results))


@job("sleeper")
async def sleeper(run: Run, number: Number) -> Number:
    number = await run.step(add, number)
    await run.sleep(number.value / 10, key="nap")
    result: Number = await run.step(double, number)
    return result


@job("asking")
async def asking(run: Run, number: Number) -> Number:
    answer = await run.wait_event("answer", key="ask", timeout=number.value / 10 if number.value else None)
    return Number(value=answer["value"])


@job("sides")
async def sides(run: Run, number: Number) -> Number:
    async def nap_then_add() -> Any:
        await run.sleep(1.1, key="nap")
        return await run.step(add, number)

    await run.gather(nap_then_add(), run.step(pass_gate, number))
    return number


@job("napping")
async def napping(run: Run, number: Number) -> Number:
    await run.gather(run.step(add, number, key="left"), run.step(add, number, key="right"))
    await run.sleep(1.3, key="first nap")
    await run.sleep(1.3, key="second nap")  # by now, both branches are remembered and end in one moment
    return number


@job("diamond")
async def diamond(run: Run, number: Number) -> Number:
    """One branch waits for two others, of which one waits for a person."""
    left, right, found = run.latch(), run.latch(), {}

    async def one(name: str, latch: Any) -> None:
        try:
            if name == "right":
                await run.wait_event("answer", key="ask")
            found[name] = await run.step(add, number, key=name)
        finally:
            latch.open()

    async def bottom() -> Number:
        await left.passed()
        await right.passed()
        result: Number = await run.step(double, Number(value=sum(one.value for one in found.values())))
        return result

    ends = await run.gather(bottom(), one("left", left), one("right", right))
    result: Number = ends[0]
    return result


@job("never_opened")
async def never_opened(run: Run, number: Number) -> None:
    await run.gather(run.latch().passed(), run.step(add, number))


@job("patient_or_not")
async def patient_or_not(run: Run, number: Number) -> Number:
    """The same step under two policies."""
    once = replace(add, retry=ONCE, title="Add once")
    with contextlib.suppress(StepFailed):
        await run.step(once, number, key="once")
    result: Number = await run.step(add, number, key="thrice")
    return result


@job("passing_over", steps=[add, double])
async def passing_over(run: Run, number: Number) -> Number:
    """Does without the first step, and fails at the second."""
    with contextlib.suppress(StepFailed):
        number = await run.step(replace(add, may_fail=True), number)
    result: Number = await run.step(double, number)
    return result


@job("short_lived", deadline=0.4)
async def short_lived(run: Run, number: Number) -> None:
    await run.wait_event("never", key="never")


@job("one_at_a_time", steps=[pass_gate], slots=1)
async def one_at_a_time(run: Run, number: Number) -> Number:
    result: Number = await run.step(pass_gate, number)
    return result


JOBS = [
    sequence, gated, undoing, lone_slow, lone_huge, lone_crash, catching, wide, sleeper, asking, sides, short_lived,
    one_at_a_time, napping, diamond, never_opened, patient_or_not, passing_over,
]  # fmt: skip


@pytest.fixture(params=ENGINES)
def start(request: pytest.FixtureRequest) -> Start:
    return starter(request.param, request.config)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def registry(world: World) -> Registry:
    registry = Registry()
    registry.add(JOBS, world)
    return registry


async def test_steps_run_in_order_and_their_events_have_no_gap(
    start: Start, database: Database, registry: Registry
) -> None:
    topic = uuid4()
    async with start(database, registry) as engine:
        job_id = await engine.submit(sequence, Number(value=3), topic=topic)
        view = await engine.until(job_id)
        events = await engine.events(job_id)
    assert view["state"] == "succeeded"
    assert view["result"] == {"value": 8}
    assert view["percent"] == 100
    assert [(s["key"], s["state"], s["attempt"]) for s in view["steps"]] == [
        ("add", "succeeded", 1),
        ("double", "succeeded", 1),
    ]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.topic_seq for event in events] == list(range(1, len(events) + 1))
    assert [event.data["state"] for event in events if event.type == "job"] == ["pending", "running", "succeeded"]


async def test_a_passing_fault_is_tried_again_and_a_lasting_one_fails(
    start: Start, database: Database, registry: Registry, world: World
) -> None:
    world.fail = {"add": 2}
    async with start(database, registry) as engine:
        first = await engine.until(await engine.submit(sequence, Number(value=1)))
        world.fail = {"double": -1}
        second = await engine.until(await engine.submit(sequence, Number(value=1)))
        world.fail = {"add": 9}
        third = await engine.until(await engine.submit(sequence, Number(value=1)))
    assert first["state"] == "succeeded"
    assert first["steps"][0]["attempt"] == 3
    assert second["error"] == {"code": "broken", "message": "double cannot be done.", "step": "double"}
    assert second["steps"][1]["attempt"] == 1
    assert third["error"]["code"] == "flaky"
    assert third["steps"][0]["attempt"] == 3


async def test_a_retry_goes_on_from_the_failed_step(
    start: Start, database: Database, registry: Registry, world: World
) -> None:
    world.fail = {"double": -1}
    async with start(database, registry) as engine:
        job_id = await engine.submit(sequence, Number(value=1))
        await engine.until(job_id)
        world.fail = {}
        again = await engine.retry(job_id)
        view = await engine.until(job_id)
        with pytest.raises(Problem, match="not_retryable"):
            await engine.retry(job_id)
    assert (again["state"], again["attempt"]) == ("pending", 2)
    assert (view["state"], view["result"]) == ("succeeded", {"value": 4})
    assert world.calls["add"] == 1


async def test_faults_of_ours_tell_their_type_only(start: Start, database: Database, registry: Registry) -> None:
    async with start(database, registry) as engine:
        view = await engine.until(await engine.submit(lone_crash, Number(value=1)))
        timed = await engine.until(await engine.submit(lone_slow, Number(value=1)))
        large = await engine.until(await engine.submit(lone_huge, Number(value=1)))
    assert view["error"]["code"] == "internal"
    assert "secret" not in str(view)
    assert timed["error"]["code"] == "timed_out"
    assert timed["steps"][0]["attempt"] == 2
    assert large["error"]["code"] == "result_too_large"


async def test_cancel_stops_the_step_and_undoes_in_reverse(
    start: Start, database: Database, registry: Registry, world: World
) -> None:
    async with start(database, registry) as engine:
        job_id = await engine.submit(gated, Number(value=1))
        await world.reached("gate")
        asked = await engine.cancel(job_id)
        again = await engine.cancel(job_id)
        view = await engine.until(job_id)
        with pytest.raises(Problem, match="not_retryable"):
            await engine.retry(job_id)
    assert asked["state"] == "cancelling"
    assert again["state"] in ("cancelling", "cancelled")  # it may have ended between the two
    assert view["state"] == "cancelled"
    assert world.log == ["add", "gate", "undo_gate", "undo_add"]
    assert [(s["state"], s["message"]) for s in view["steps"]] == [
        ("undone", None),
        ("undone", None),
        ("skipped", None),
    ]
    assert view["percent"] == 0
    assert view["error"] is None


async def test_cancel_before_the_start_and_after_the_end(start: Start, database: Database, registry: Registry) -> None:
    async with start(database, registry) as engine:
        async with database.transaction() as session:
            request = JobRequest(sequence, Number(value=1))
            await engine.ledger.submit(session, request)
            view = await engine.ledger.cancel(session, request.id)
        done = await engine.submit(sequence, Number(value=1))
        await engine.until(done)
        with pytest.raises(Problem, match="job_finished"):
            await engine.cancel(done)
    assert view["state"] == "cancelled"


async def test_a_failure_undoes_when_the_job_says_so(
    start: Start, database: Database, registry: Registry, world: World
) -> None:
    world.fail = {"double": -1}
    async with start(database, registry) as engine:
        job_id = await engine.submit(undoing, Number(value=1))
        view = await engine.until(job_id)
        world.fail = {}
        await engine.retry(job_id)
        second = await engine.until(job_id)
    assert (view["state"], view["error"]["code"]) == ("failed", "broken")
    assert view["steps"][0]["state"] == "undone"
    assert second["state"] == "succeeded"
    assert world.log == ["add", "double", "undo_add", "add", "double"]


async def test_an_undo_that_fails_says_what_is_left_and_can_be_retried(
    start: Start, database: Database, registry: Registry, world: World
) -> None:
    world.fail = {"undo_add": -1}
    async with start(database, registry) as engine:
        job_id = await engine.submit(gated, Number(value=1))
        await world.reached("gate")
        await engine.cancel(job_id)
        view = await engine.until(job_id)
        world.fail = {}
        await engine.retry(job_id)
        second = await engine.until(job_id)
    assert view["state"] == "cleanup_required"
    assert view["error"]["code"] == "undo_failed"
    assert view["error"]["left"] == ["add"]
    assert second["state"] == "cancelled"
    assert world.log == ["add", "gate", "undo_gate", "undo_add", "undo_add"]


async def test_a_failure_that_the_job_catches_is_remembered(
    start: Start, database: Database, registry: Registry, world: World
) -> None:
    async with start(database, registry) as engine:
        view = await engine.until(await engine.submit(catching, Number(value=1)))
    assert (view["state"], view["result"]) == ("succeeded", {"value": 2})
    assert {s["key"]: s["attempt"] for s in view["steps"]} == {"crash": 1, "pause": 2, "add": 1}


async def test_gather_runs_branches_side_by_side(
    start: Start, database: Database, registry: Registry, world: World
) -> None:
    world.fail = {"add": 3}
    async with start(database, registry) as engine:
        view = await engine.until(await engine.submit(wide, Number(value=0)))
    assert view["result"] == {"value": 15}
    assert len(view["steps"]) == 5


async def test_a_long_sleep_gives_up_the_slot(
    start: Start, database: Database, registry: Registry, world: World
) -> None:
    async with start(database, registry) as engine:
        job_id = await engine.submit(sleeper, Number(value=5999))
        await engine.until(job_id, "waiting")
        async with database.transaction() as session:
            row = (await session.execute(text("SELECT worker, run_at - now() AS left FROM jobs.job"))).one()
            await session.execute(text("UPDATE jobs.step SET run_at = clock_timestamp() WHERE key = 'nap'"))
            await session.execute(text("UPDATE jobs.job SET run_at = clock_timestamp()"))
        view = await engine.until(job_id)
    assert row.worker is None
    assert row.left.total_seconds() > 300  # of 600
    assert view["result"] == {"value": 12000}
    assert world.calls["add"] == 1


async def test_a_sleep_lasts_as_long_as_it_should(start: Start, database: Database, registry: Registry) -> None:
    async with start(database, registry) as engine:
        begun = time.monotonic()
        await engine.until(await engine.submit(sleeper, Number(value=14)))
    assert time.monotonic() - begun >= 1.4


async def test_an_event_wakes_what_waits_for_it_whenever_it_comes(
    start: Start, database: Database, registry: Registry
) -> None:
    async with start(database, registry) as engine:
        job_id = await engine.submit(asking, Number(value=0))
        await engine.until(job_id, "waiting")
        await engine.send(job_id, "other", {"value": 1})
        await engine.send(job_id, "answer", {"value": 42})
        view = await engine.until(job_id)
        late = await engine.until(await engine.submit(asking, Number(value=1)))
    assert view["result"] == {"value": 42}
    assert late["error"] == {"code": "timed_out", "message": "The event answer did not come in time.", "step": "ask"}


async def test_a_wait_after_branches_gives_up_the_slot(
    start: Start, database: Database, registry: Registry, world: World
) -> None:
    async with start(database, registry) as engine:
        job_id = await engine.submit(napping, Number(value=1))
        await engine.until(job_id)
        events = await engine.events(job_id)
    states = [event.data["state"] for event in events if event.type == "job"]
    assert states == ["pending", "running", "waiting", "running", "waiting", "running", "succeeded"]


async def test_a_branch_waits_for_others_and_the_slot_is_free_meanwhile(
    start: Start, database: Database, registry: Registry, world: World
) -> None:
    async with start(database, registry) as engine:
        job_id = await engine.submit(diamond, Number(value=2))
        await engine.until(job_id, "waiting")
        await engine.send(job_id, "answer", {})
        view = await engine.until(job_id)
    assert (view["state"], view["result"]) == ("succeeded", {"value": 12})
    assert world.log == ["add", "add", "double"]


async def test_a_branch_that_nobody_can_let_go_on_fails_the_job(
    start: Start, database: Database, registry: Registry, world: World
) -> None:
    async with start(database, registry) as engine:
        view = await engine.until(await engine.submit(never_opened, Number(value=2)))
    assert (view["state"], view["error"]["code"]) == ("failed", "internal")
    assert world.log == ["add"]


async def test_a_job_gives_a_step_a_policy_of_its_own(
    start: Start, database: Database, registry: Registry, world: World
) -> None:
    world.fail["add"] = 3
    async with start(database, registry) as engine:
        view = await engine.until(await engine.submit(patient_or_not, Number(value=2)))
    assert view["state"] == "succeeded"
    steps = {step["key"]: (step["state"], step["attempt"], step["title"]) for step in view["steps"]}
    assert steps == {"once": ("failed", 1, "Add once"), "thrice": ("succeeded", 3, "Add one")}


async def test_a_retry_does_not_try_again_what_was_passed_over(
    start: Start, database: Database, registry: Registry, world: World
) -> None:
    world.fail |= {"add": -1, "double": -1}
    async with start(database, registry) as engine:
        job_id = await engine.submit(passing_over, Number(value=2))
        failed = await engine.until(job_id)
        world.fail.clear()
        await engine.retry(job_id)
        view = await engine.until(job_id)
    assert (failed["state"], failed["error"]["step"]) == ("failed", "double")
    assert (view["state"], view["result"]) == ("succeeded", {"value": 4})
    assert world.log == ["add", "double", "double"]


async def test_a_wait_does_not_hold_up_the_branch_beside_it(
    start: Start, database: Database, registry: Registry, world: World
) -> None:
    async with start(database, registry) as engine:
        job_id = await engine.submit(sides, Number(value=1))
        await engine.until_step(job_id, "add", "succeeded")
        state = (await engine.view(job_id))["state"]
        world.gate.set()
        view = await engine.until(job_id)
    assert state == "running"
    assert view["state"] == "succeeded"


async def test_cancelling_a_waiting_job(start: Start, database: Database, registry: Registry) -> None:
    async with start(database, registry) as engine:
        job_id = await engine.submit(asking, Number(value=0))
        await engine.until(job_id, "waiting")
        await engine.cancel(job_id)
        view = await engine.until(job_id)
    assert view["state"] == "cancelled"


async def test_a_job_past_its_deadline_fails(start: Start, database: Database, registry: Registry) -> None:
    async with start(database, registry) as engine:
        view = await engine.until(await engine.submit(short_lived, Number(value=1)))
    assert (view["state"], view["error"]["code"]) == ("failed", "deadline_exceeded")


async def test_slots_bound_a_kind_and_leave_others_alone(
    start: Start, database: Database, registry: Registry, world: World
) -> None:
    async with start(database, registry) as engine:
        gates = [await engine.submit(one_at_a_time, Number(value=i)) for i in range(3)]
        await world.reached("gate")
        other = await engine.until(await engine.submit(sequence, Number(value=1)))
        running = [(await engine.view(one))["state"] for one in gates]
        world.gate.set()
        ends = [(await engine.until(one))["state"] for one in gates]
    assert other["state"] == "succeeded"
    assert sorted(running) == ["pending", "pending", "running"]
    assert ends == ["succeeded"] * 3


async def test_the_end_of_a_run_lets_the_next_one_begin(
    start: Start, database: Database, registry: Registry, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nobody looks by himself."""
    for engine_module in ("engine", "dapr.dispatcher"):
        monkeypatch.setattr(f"shared.jobs.{engine_module}.POLL_SECONDS", 10 * PATIENCE)
    async with start(database, registry) as engine:
        gates = [await engine.submit(one_at_a_time, Number(value=i)) for i in range(3)]
        await world.reached("gate")
        world.gate.set()
        ends = [(await engine.until(one))["state"] for one in gates]
    assert ends == ["succeeded"] * 3


async def test_progress_reaches_readers(start: Start, database: Database, registry: Registry, world: World) -> None:
    async with start(database, registry) as engine:
        job_id = await engine.submit(gated, Number(value=1))
        async with asyncio.timeout(PATIENCE):
            while not any(_is_half(event.data) for event in await engine.events(job_id)):
                await engine.ledger.hub.wait(job_id, 0.1)
        view = await engine.view(job_id)
        world.gate.set()
        ended = await engine.until(job_id)
        events = await engine.events(job_id)
    half = next(event.data for event in events if event.data.get("percent") == 50 and event.data["key"] == "gate")
    assert (half["message"], half["job_percent"]) == ("half", 50.0)
    assert [step["message"] for step in ended["steps"]] == [None] * 3  # what was said on the way is not so any more
    assert view["steps"][1]["message"] == "half"
    assert view["percent"] == 50.0  # one of three steps done, the second half-way
    assert view["state"] == "running"


def _is_half(event: dict[str, Any]) -> bool:
    return event.get("percent") == 50 and event.get("key") == "gate"
