"""The ledger by itself: what its statements refuse and accept, and random sequences of them by two claimers."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.pool import AsyncAdaptedQueuePool

from shared.db.engine import Database
from shared.errors import Problem
from shared.jobs.attempts import Attempts, Begun, CancelRequested, Remembered
from shared.jobs.claims import Claim, Claims
from shared.jobs.declare import Registry, job, step
from shared.jobs.hub import WORK, Hub, end_name
from shared.jobs.ledger import FINAL, JobRequest, Ledger, StaleFence
from shared.jobs.retention import purge
from shared.jobs.run import PlannedStep, Run, Step
from shared.jobs.tables import JOB_STATES
from tests.shared.jobs.engines import PATIENCE, Harness

KEYS = ["one", "two"]


@step("One")
async def one(ctx: Step, number: int) -> int:
    return number


@step("Two")
async def two(ctx: Step, number: int) -> int:
    return number


@job("plain", steps=[one, two])
async def plain(run: Run, number: int) -> int:
    return number


@job("brief", deadline=0.05)
async def brief(run: Run, number: int) -> int:
    return number


@job("lasting", deadline=100)
async def lasting(run: Run, number: int) -> int:
    return number


@job("plain", version=2)
async def plainer(run: Run, number: int) -> int:
    return number


@dataclass
class Bench(Harness):
    attempts: Attempts

    def claims(self, lease: float = 60) -> Claims:
        return Claims(self.database, self.ledger, uuid4(), lease)

    async def claimer(self) -> Claims:
        claims = self.claims()
        await claims.register({"plain": [1]})
        return claims

    async def take(self, claims: Claims, definition: Any = plain) -> Claim:
        claim = await claims.take({definition.kind: ([definition.version], 1)})
        assert claim is not None
        return claim

    async def begin(self, claim: Claim, key: str = "one") -> Begun:
        begun = await self.attempts.begin(claim.job_id, claim.fence, key, key, 1.0)
        assert isinstance(begun, Begun)
        return begun

    async def end(self, claim: Claim, state: str) -> None:
        async with self.database.transaction() as session:
            await self.ledger.transition(session, claim.job_id, state, fence=claim.fence)


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[Bench]:
    hub = Hub(database)
    await hub.start()
    attempts = Attempts(database.url, hub)
    yield Bench(database, Ledger(database, hub), attempts)
    await attempts.close()
    await hub.close()


async def test_a_late_progress_changes_nothing_and_uses_no_number(bench: Bench) -> None:
    job_id = await bench.submit(plain, 1)
    claim = await bench.take(await bench.claimer())
    begun = await bench.begin(claim)
    await bench.attempts.succeed(job_id, claim.fence, "one", begun.token, 7)
    before = await bench.events(job_id)
    for report in (
        bench.attempts.progress(job_id, claim.fence, "one", begun.token, 50, "late"),
        bench.attempts.succeed(job_id, claim.fence, "one", begun.token, 8),
        bench.attempts.fail(job_id, claim.fence, "one", begun.token, {"code": "late"}),
    ):
        with pytest.raises(StaleFence):
            await report
    await bench.end(claim, "succeeded")
    events = await bench.events(job_id)
    assert [event.seq for event in events] == list(range(1, len(before) + 2))
    assert (await bench.view(job_id))["steps"][0]["percent"] == 100


async def test_reports_that_meet_leave_no_gap_and_the_end_stands(bench: Bench) -> None:
    job_id = await bench.submit(plain, 1, topic=uuid4())
    claim = await bench.take(await bench.claimer())
    for key in (f"step-{number}" for number in range(20)):
        begun = await bench.begin(claim, key)
        progress = [
            bench.attempts.progress(job_id, claim.fence, key, begun.token, percent, None) for percent in range(5)
        ]
        end = bench.attempts.succeed(job_id, claim.fence, key, begun.token, None)
        await asyncio.gather(*progress[:3], end, *progress[3:], return_exceptions=True)
    events = await bench.events(job_id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.topic_seq for event in events] == list(range(1, len(events) + 1))
    steps = [step for step in (await bench.view(job_id))["steps"] if step["key"].startswith("step-")]
    assert {(step["state"], step["percent"]) for step in steps} == {("succeeded", 100)}
    last = {event.data["key"]: event.data["state"] for event in events if event.type == "step"}
    assert set(last.values()) == {"succeeded"}


async def test_a_success_that_meets_a_cancel_is_kept_for_the_undo(bench: Bench) -> None:
    job_id = await bench.submit(plain, 1)
    claim = await bench.take(await bench.claimer())
    begun = await bench.begin(claim)
    await bench.cancel(job_id)
    await bench.attempts.succeed(job_id, claim.fence, "one", begun.token, 7)
    assert await bench.attempts.results(job_id) == {"one": 7}
    with pytest.raises(CancelRequested):
        await bench.attempts.begin(job_id, claim.fence, "two", "two", 1.0)


async def test_what_postgresql_cannot_hold_is_replaced(bench: Bench) -> None:
    job_id = await bench.submit(plain, 1)
    claim = await bench.take(await bench.claimer())
    begun = await bench.begin(claim)
    await bench.attempts.progress(job_id, claim.fence, "one", begun.token, 1, "a\0b")
    assert (await bench.view(job_id))["steps"][0]["message"] == "a\ufffdb"
    value = {"na\0me": ["\0", float("inf"), "\\u0000"]}
    await bench.attempts.succeed(job_id, claim.fence, "one", begun.token, value)
    assert await bench.attempts.results(job_id) == {"one": {"na\ufffdme": ["\ufffd", "Infinity", "\\u0000"]}}


async def test_a_step_that_has_begun_is_undone_even_after_a_retry(bench: Bench) -> None:
    job_id = await bench.submit(plain, 1)
    claim = await bench.take(await bench.claimer())
    await bench.begin(claim)
    await bench.end(claim, "failed")
    assert [step["state"] for step in (await bench.view(job_id))["steps"]] == ["cancelled", "pending"]
    await bench.retry(job_id)
    assert (await bench.cancel(job_id))["state"] == "cancelling"


async def test_a_retry_gives_the_whole_time_again(bench: Bench) -> None:
    await bench.submit(lasting, 1)
    claims = await bench.claimer()
    for _ in range(3):
        claim = await bench.take(claims, lasting)
        assert claim.seconds_left is not None
        assert 40 < claim.seconds_left <= 100
        await bench.end(claim, "failed")
        await bench.retry(claim.job_id)


async def test_an_overdue_job_that_nobody_takes_fails(bench: Bench) -> None:
    job_id = await bench.submit(brief, 1)
    await asyncio.sleep(0.06)
    await bench.claims().reap()
    view = await bench.view(job_id)
    assert (view["state"], view["error"]["code"]) == ("failed", "deadline_exceeded")


async def test_only_a_known_version_is_claimed(bench: Bench) -> None:
    old, new = await bench.submit(plain, 1), await bench.submit(plainer, 1)
    claims = await bench.claimer()
    taken = [await claims.take({"unknown": ([1], 5), "plain": (known, 5)}) for known in ([1], [1, 3], [1, 2], [1, 2])]
    assert [claim.job_id if claim else None for claim in taken] == [old, None, new, None]
    assert await claims.take({"plain": ([1], 0)}) is None
    registry = Registry()
    registry.add([plain, plainer], None)
    assert registry.latest("plain") is plainer


async def test_a_process_that_is_no_more_keeps_nothing_that_it_claims(bench: Bench) -> None:
    job_id = await bench.submit(plain, 1)
    zombie = bench.claims()  # never registered, or buried: it does not know yet
    claim = await bench.take(zombie)
    assert await bench.claims().reap() == 1
    with pytest.raises(StaleFence):
        await bench.begin(claim)
    assert (await bench.take(await bench.claimer())).job_id == job_id


async def test_a_run_that_is_given_up_has_not_crashed(bench: Bench) -> None:
    await bench.submit(plain, 1)
    for number in range(1, 4):
        claims = await bench.claimer()
        claim = await bench.take(claims)
        begun = await bench.begin(claim)
        assert (begun.number, begun.tries) == (number, 1)
        await claims.leave()
    for tries in (2, 3):
        claims = bench.claims(lease=0)
        await claims.register({"plain": [1]})
        crashed = await bench.take(claims)
        assert (await bench.begin(crashed)).tries == tries - 1
        await bench.claims().reap()


async def test_steps_of_a_request_come_after_the_listed_ones_and_keep_their_place(bench: Bench) -> None:
    job_id = await bench.submit(plain, 1, steps=[PlannedStep("three", "Three"), PlannedStep("four", "Four")])
    announced = [(step["key"], step["state"]) for step in (await bench.view(job_id))["steps"]]
    claim = await bench.take(await bench.claimer())
    for key in ("unplanned", "four", "two"):
        await bench.attempts.begin(job_id, claim.fence, key, key, 1.0)

    assert announced == [("one", "pending"), ("two", "pending"), ("three", "pending"), ("four", "pending")]
    assert [step["key"] for step in (await bench.view(job_id))["steps"]] == ["one", "two", "three", "four", "unplanned"]


async def test_the_end_of_a_job_wakes_those_who_wait_for_nothing_else(bench: Bench) -> None:
    job_id = await bench.submit(plain, 1)
    claim = await bench.take(await bench.claimer())
    changed, ended = bench.ledger.hub.watch(job_id), bench.ledger.hub.watch(end_name(job_id))
    await bench.attempts.begin(job_id, claim.fence, "one", "One", 1.0)
    assert changed.is_set()
    assert not ended.is_set()

    async with bench.database.transaction() as session:
        await bench.ledger.transition(session, job_id, "failed", fence=claim.fence)
        assert not ended.is_set()
    assert ended.is_set()


async def test_a_savepoint_is_no_commit(database: Database) -> None:
    hub = Hub(database)  # not started, so that nothing else wakes anybody
    ledger = Ledger(database, hub)
    woken = hub.watch(WORK)
    async with database.transaction() as session:
        async with session.begin_nested():
            await ledger.submit(session, JobRequest(plain, 1))
        assert not woken.is_set()
    assert woken.is_set()
    again = hub.watch(WORK)
    async with database.transaction() as session:
        await ledger.submit(session, JobRequest(plain, 1))
        await session.rollback()
    assert not again.is_set()
    await hub.close()


async def test_a_hook_that_fails_keeps_no_other_job_waiting(bench: Bench) -> None:
    bad, good = await bench.submit(plain, 1), await bench.submit(plain, 2)

    async def hook(session: Any, view: dict[str, Any], argument: Any) -> None:
        if view["id"] == str(bad):
            raise ValueError("the hook is broken")

    bench.ledger.hooks["plain"] = hook
    claims = await bench.claimer()
    with pytest.raises(ValueError, match="broken"):
        await bench.take(claims)
    assert (await bench.take(claims)).job_id == good
    assert (await bench.view(bad))["state"] == "pending"


async def test_purge_takes_what_is_old_and_ended(bench: Bench) -> None:
    ended, running = await bench.submit(plain, 1, topic=uuid4()), await bench.submit(plain, 2)
    await bench.cancel(ended)
    await bench.take(await bench.claimer())
    assert await purge(bench.database, 1) == 0
    async with bench.database.transaction() as session:
        await session.execute(text("UPDATE jobs.job SET ended_at = ended_at - interval '2 days'"))
    assert await purge(bench.database, 1) == 1
    assert await bench.events(ended) == []
    assert (await bench.view(running))["state"] == "running"


@pytest.mark.filterwarnings("error:The garbage collector is trying")
async def test_statements_that_are_cut_off_leave_no_connection_behind(bench: Bench) -> None:
    job_id = await bench.submit(plain, 1)
    claim = await bench.take(await bench.claimer())
    for delay in range(60):
        work = asyncio.create_task(bench.begin(claim, f"step-{delay}"))
        await asyncio.sleep(delay / 20_000)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        reading = asyncio.create_task(bench.view(job_id))
        await asyncio.sleep(delay / 20_000)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    await bench.begin(claim, "after")
    events = await bench.events(job_id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    pool = bench.database.engine.pool
    assert isinstance(pool, AsyncAdaptedQueuePool)
    async with asyncio.timeout(PATIENCE):
        while pool.checkedout():  # until the checkouts that were cut off have come to their end
            await asyncio.sleep(0.01)
    await asyncio.gather(*(bench.view(job_id) for _ in range(40)))  # more than the pool has: all of it is there


@dataclass
class Token:
    claim: Claim
    key: str
    begun: Begun
    used: bool = False


class Chaos:
    """Random calls by two claimers, with what each of them must have led to."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench = bench
        self.chance = random.Random(seed)
        self.jobs: list[UUID] = []
        self.held: list[Claim] = []
        self.tokens: list[Token] = []
        self.ends: dict[UUID, int] = {}

    async def run(self, calls: int) -> None:
        self.claimers = [await self.bench.claimer() for _ in range(2)]
        names = ["submit", "claim", "claim", "begin", "begin", "report", "report", "report", "cancel", "retry", "signal",
                 "end", "lose", "give_up"]  # fmt: skip
        for _ in range(calls):
            await getattr(self, self.chance.choice(names))()
        for job_id in self.jobs:
            await self.check(job_id)

    async def submit(self) -> None:
        self.jobs.append(await self.bench.submit(plain, 1, topic=uuid4()))

    async def claim(self) -> None:
        first, second = await asyncio.gather(*(claims.take({"plain": ([1], 2)}) for claims in self.claimers))
        if first and second:
            assert first.job_id != second.job_id
        self.held += [claim for claim in (first, second) if claim]

    async def begin(self) -> None:
        if not self.held:
            return
        claim, key = self.chance.choice(self.held), self.chance.choice(KEYS)
        try:
            begun = await self.bench.attempts.begin(claim.job_id, claim.fence, key, key, 1.0)
        except (StaleFence, CancelRequested):
            return
        if isinstance(begun, Remembered):
            assert any(t.used and t.claim.job_id == claim.job_id and t.key == key for t in self.tokens)
            return
        self.tokens.append(Token(claim, key, begun))

    async def report(self) -> None:
        if not self.tokens:
            return
        token = self.chance.choice(self.tokens)
        newest = [t for t in self.tokens if t.claim.job_id == token.claim.job_id and t.key == token.key][-1]
        claim, key, begun = token.claim, token.key, token.begun
        report = self.chance.choice(["succeed", "fail", "again"])
        try:
            if report == "succeed":
                await self.bench.attempts.succeed(claim.job_id, claim.fence, key, begun.token, 1)
            else:
                state = "failed" if report == "fail" else "pending"
                await self.bench.attempts.fail(
                    claim.job_id, claim.fence, key, begun.token, {"code": "x", "message": "x", "step": key}, state=state
                )
        except StaleFence:
            return
        assert token is newest, "an older attempt has reported"
        assert not token.used, "a token has worked twice"
        token.used = True

    async def cancel(self) -> None:
        await self._ask(self.bench.cancel)

    async def retry(self) -> None:
        await self._ask(self.bench.retry)

    async def signal(self) -> None:
        async def send(job_id: UUID) -> None:
            await self.bench.send(job_id, "go", 1)

        await self._ask(send)

    async def _ask(self, call: Any) -> None:
        if self.jobs:
            with contextlib.suppress(Problem):  # refused, as it should be in many states
                await call(self.chance.choice(self.jobs))

    async def end(self) -> None:
        """What an engine does at the end of a run: forward to success or failure, or back to cancelled."""
        if not self.held:
            return
        claim = self.held.pop(self.chance.randrange(len(self.held)))
        state = self.chance.choice(["succeeded", "failed", "waiting"])
        try:
            async with self.bench.database.transaction() as session:
                more = "worker = NULL" if state == "waiting" else ""
                await self.bench.ledger.transition(
                    session, claim.job_id, state, fence=claim.fence, forward=True, set_=more
                )
        except StaleFence:
            try:
                async with self.bench.database.transaction() as session:
                    phase = await session.scalar(
                        text("SELECT phase FROM jobs.job WHERE id = :id AND fence = :fence AND worker IS NOT NULL"),
                        {"id": claim.job_id, "fence": claim.fence},
                    )
                    if phase == "undo":
                        await self.bench.ledger.transition(session, claim.job_id, "cancelled", fence=claim.fence)
            except StaleFence:
                return

    async def lose(self) -> None:
        """The lease of one of them ends; it comes back under a new name, and still believes in its claims."""
        if self.chance.random() < 0.3:
            index = self.chance.randrange(2)
            async with self.bench.database.transaction() as session:
                await session.execute(
                    text("UPDATE jobs.process SET lease_until = '-infinity' WHERE id = :id"),
                    {"id": self.claimers[index].process},
                )
            await self.claimers[1 - index].reap()
            self.claimers[index] = await self.bench.claimer()

    async def give_up(self) -> None:
        if self.chance.random() < 0.3:
            await self.chance.choice(self.claimers).release_others([])

    async def check(self, job_id: UUID) -> None:
        view = await self.bench.view(job_id)
        events = await self.bench.events(job_id)
        assert view["state"] in JOB_STATES
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert [event.topic_seq for event in events] == list(range(1, len(events) + 1))
        states = [event.data["state"] for event in events if event.type == "job"]
        assert states[-1] == view["state"]
        for before, after in pairwise(states):
            assert after in LEGAL[before], (before, after)
        if view["state"] in FINAL:
            assert not [step for step in view["steps"] if step["state"] == "running"]


LEGAL = {
    "pending": {"running", "cancelled", "cancelling"},
    "running": {"waiting", "succeeded", "failed", "cancelling"},
    "waiting": {"running", "cancelling"},
    "cancelling": {"cancelled"},
    "failed": {"pending"},
    "succeeded": set(),
    "cancelled": set(),
}


@pytest.mark.parametrize("seed", range(6))
async def test_random_calls_keep_the_ledger_whole(bench: Bench, seed: int) -> None:
    await Chaos(bench, seed).run(150)
