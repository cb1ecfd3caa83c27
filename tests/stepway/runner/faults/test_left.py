"""When a run leaves a server's memory, however it does, its steps stop there: they may be running elsewhere by then."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from workflows import Context, Workflow, step
from workflows.events import StartEvent, StopEvent

from stepway.runner.config import Config
from stepway.runner.runs import Runs
from tests.stepway.runner.stores import KINDS, opened


class Holds(Workflow):
    """A step that does not end; it tells when it has begun and when it was stopped."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.begun, self.stopped = asyncio.Event(), asyncio.Event()

    @step
    async def hold(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.stopped.set()
        return StopEvent(result="never")


async def stops(runs: Runs) -> None:
    await runs.shut_down(0)


async def is_fenced(runs: Runs) -> None:
    runs._lost()


async def is_cancelled(runs: Runs) -> None:
    await runs.cancel("held", purge=False)


async def is_purged(runs: Runs) -> None:
    await runs.cancel("held", purge=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leave", [None, stops, is_fenced, is_cancelled, is_purged])
async def test_its_steps_stop(kind: str, leave: Callable[[Runs], Awaitable[None]] | None) -> None:
    """None: by the server's bound on a run's time."""
    async with opened(kind) as new_store, asyncio.timeout(30):
        runs = Runs(new_store(), Config(max_run_time=0.5 if leave is None else None))
        workflow = Holds()
        runs.add("holds", workflow)
        await runs.start_up()
        try:
            await runs.start("holds", start_event=StartEvent(), handler_id="held")
            await workflow.begun.wait()
            if leave is not None:
                await leave(runs)
            await workflow.stopped.wait()
        finally:
            await runs.shut_down(0)
