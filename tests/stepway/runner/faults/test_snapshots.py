"""Journals that have become snapshots: runs go on from them as from the journal itself."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from workflows import Context, Workflow, step
from workflows.events import HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent
from workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from stepway.runner import live
from stepway.runner.config import Config
from stepway.runner.live import LiveRun
from stepway.runner.runs import Runs
from stepway.runner.store import AlreadyOver, Handler, Store
from tests.stepway.runner import flows
from tests.stepway.runner.faults.conftest import Errands, begin, numbers, result
from tests.stepway.runner.stores import opened

LAST = 1500
JOURNAL = "SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM stepway_runner.journal GROUP BY run_id) AS each"


@pytest.mark.faults(sample=1)
@pytest.mark.parametrize("at", [249, 250, 700, 1001, 1400])
def test_a_long_run_that_is_killed_goes_on(errands: Errands, at: int) -> None:
    with errands.server(KILL_AT=f"go:{at}") as first:
        begin(first, "goes", "long", last=LAST)
        assert first.died() == -signal.SIGKILL
    assert errands.query(JOURNAL) <= live.LONG_JOURNAL + 10
    with errands.server() as second:
        assert result(second, "long") == LAST
        assert errands.query(JOURNAL) == 0
        seen = numbers(second, "long")
    assert seen == list(range(len(seen)))
    assert [what for what, _ in errands.notes("go:")] == [f"go:{n}" for n in sorted([*range(LAST), at])]


class Loops(Workflow):
    """Step after step, while another step waits for a certain answer and a third one is tried again and again."""

    tried = 0

    @step
    async def split(self, ctx: Context, ev: StartEvent) -> flows.Middle | flows.Part | flows.Holds | None:
        ctx.send_event(flows.Middle(words=["waits"]))
        ctx.send_event(flows.Part(n=0))
        ctx.send_event(flows.Holds(thing="tries"))
        return None

    @step
    async def loop(self, ev: flows.Part) -> flows.Part | flows.Squared:
        await asyncio.sleep(0.01)
        return flows.Part(n=ev.n + 1) if ev.n < 20 else flows.Squared(n=ev.n)

    @step
    async def wait(self, ctx: Context, ev: flows.Middle) -> flows.Squared:
        answer = await ctx.wait_for_event(
            HumanResponseEvent,
            waiter_event=InputRequiredEvent(prefix="?"),
            requirements={"response": "right"},
            timeout=600,
        )
        return flows.Squared(n=1000 if answer.response == "right" else -1)

    @step(retry_policy=retry_policy(wait=wait_fixed(0.1), stop=stop_after_attempt(5)))
    async def hard(self, ev: flows.Holds) -> flows.Squared:
        Loops.tried += 1
        if Loops.tried < 4:
            raise ConnectionError("not yet")
        return flows.Squared(n=100)

    @step
    async def add(self, ctx: Context, ev: flows.Squared) -> StopEvent | None:
        found = ctx.collect_events(ev, [flows.Squared] * 3)
        return None if found is None else StopEvent(result=sum(one.n for one in found))


class GivesUp(Workflow):
    """Waits for what does not come, beside a step that goes on and on."""

    @step
    async def split(self, ctx: Context, ev: StartEvent) -> flows.Middle | flows.Part | None:
        ctx.send_event(flows.Middle(words=["waits"]))
        ctx.send_event(flows.Part(n=0))
        return None

    @step
    async def loop(self, ev: flows.Part) -> flows.Part | StopEvent:
        await asyncio.sleep(0.05)
        return flows.Part(n=ev.n + 1) if ev.n < 400 else StopEvent(result="waits on")

    @step
    async def wait(self, ctx: Context, ev: flows.Middle) -> StopEvent:
        try:
            await ctx.wait_for_event(HumanResponseEvent, timeout=1.5)
        except TimeoutError:
            return StopEvent(result="gave up")
        return StopEvent(result="answered")


class Place:
    """Servers on one database, one at a time. `compacted` rings when a journal becomes a snapshot."""

    def __init__(self, new_store: Callable[[], Store]) -> None:
        self._new_store = new_store
        self.compacted = asyncio.Event()
        self.snapshots = 0
        self.runs: Runs | None = None

    async def move(self, workflow: Workflow) -> Runs:
        """To another server."""
        await self.leave()
        self.runs = Runs(self._new_store(), Config(idle_release=0.2))
        self.runs.add("flow", workflow, [HumanResponseEvent])
        await self.runs.start_up()
        return self.runs

    async def leave(self) -> None:
        if self.runs is not None:
            await self.runs.shut_down(0)

    async def to_the_end(self, make: Callable[[], Workflow], handler: Handler, meanwhile: Any = None) -> Handler:
        """On a new server after each snapshot."""
        async with asyncio.timeout(50):
            while True:
                assert self.runs is not None
                over = asyncio.ensure_future(self.runs.finished(handler))
                rung = asyncio.ensure_future(self.compacted.wait())
                await asyncio.wait([over, rung], return_when=asyncio.FIRST_COMPLETED)
                rung.cancel()
                if over.done():
                    return over.result()
                over.cancel()
                self.compacted.clear()
                await self.move(make())
                if meanwhile is not None:
                    await meanwhile()


@pytest.fixture
async def place(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    monkeypatch.setattr(live, "LONG_JOURNAL", 4)
    compact = LiveRun.compact
    async with opened("postgres") as new_store:
        place = Place(new_store)

        def compact_and_ring(run: LiveRun, *given: Any) -> None:
            compact(run, *given)
            place.snapshots += 1
            place.compacted.set()

        monkeypatch.setattr(LiveRun, "compact", compact_and_ring)
        yield place
        await place.leave()


@pytest.mark.parametrize(
    ("make", "given", "wanted"),
    [
        (flows.Squares, {"count": 12}, sum(n * n for n in range(12))),
        (flows.Sends, {}, [0, 1, 4, 9]),
        (flows.Flaky, {"key": "snapshots", "times": 4}, None),
        (GivesUp, {}, "gave up"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
async def test_a_run_moves_at_each_snapshot(
    place: Place, make: Callable[[], Workflow], given: dict[str, Any], wanted: Any
) -> None:
    runs = await place.move(make())
    handler = await place.to_the_end(make, await runs.start("flow", start_event=StartEvent(**given)))
    assert handler.status == "completed", handler.error
    assert handler.result is not None
    got = handler.result["value"]["result"]
    assert got == wanted if wanted is not None else got >= 5  # a try that was cut off is made again
    assert place.snapshots > 0


async def test_what_a_wait_requires_outlasts_snapshots(place: Place) -> None:
    """A wrong answer is sent at each snapshot, and the right one when all else is done."""
    Loops.tried = 0
    runs = await place.move(Loops(timeout=None))
    begun = await runs.start("flow", start_event=StartEvent())

    async def answer() -> None:
        assert place.runs is not None
        right = place.snapshots > 5
        try:
            await place.runs.send(begun.handler_id, HumanResponseEvent(response="right" if right else "wrong"), None)
        except AlreadyOver:  # by the right answer at the snapshot before
            assert place.snapshots > 6

    handler = await place.to_the_end(lambda: Loops(timeout=None), begun, answer)
    assert handler.status == "completed", handler.error
    assert handler.result is not None
    assert handler.result["value"]["result"] == 1120
    found = await place.runs.store.events(handler.run_id, -1, 10_000, internal=True) if place.runs is not None else []
    assert [one.seq for one in found] == list(range(len(found)))
