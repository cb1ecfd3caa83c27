"""A file for `stepway serve`: workflows that wait, try again, tell much and go far. What they do is a line of the file `LOG`.

At the line that `KILL_AT` names, the server kills itself, once.
"""

import asyncio
import os
import signal
import time
from pathlib import Path

from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent
from workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from stepway.runner import WorkflowServer

LOG = Path(os.environ["LOG"])
RETRY_DELAY = float(os.environ.get("RETRY_DELAY", "3"))
TIMEOUT = float(os.environ.get("TIMEOUT", "4"))


def note(what: str) -> None:
    """Seconds are the machine's own, which no jump of a clock moves."""
    with LOG.open("a") as log:
        log.write(f"{what} {time.monotonic()}\n")
    once = LOG.with_suffix(".killed")
    if what == os.environ.get("KILL_AT") and not once.exists():
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class Told(Event):
    n: int
    text: str = ""


class Next(Event):
    n: int
    last: int


class Tells(Workflow):
    """Waits for a word to begin, then tells `count` events of `size` characters in lots."""

    @step
    async def tell(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.wait_for_event(HumanResponseEvent, waiter_event=InputRequiredEvent(prefix="Begin?"), timeout=None)
        for n in range(ev.get("count", 300)):
            ctx.write_event_to_stream(Told(n=n, text="x" * ev.get("size", 0)))
            if n % 10 == 9:
                await asyncio.sleep(0.03)
        return StopEvent(result="told")


class Waits(Workflow):
    """Gives up after `seconds`."""

    @step
    async def wait(self, ctx: Context, ev: StartEvent) -> StopEvent:
        name = ev.get("name", "?")
        asking = InputRequiredEvent(prefix="Well?")
        try:
            answer = await ctx.wait_for_event(HumanResponseEvent, waiter_event=asking, timeout=ev.get("seconds", 600))
        except TimeoutError:
            note(f"{name}:gave-up")
            return StopEvent(result="gave up")
        note(f"{name}:answered")
        return StopEvent(result=answer.response)


class Tries(Workflow):
    """Fails once."""

    @step(retry_policy=retry_policy(wait=wait_fixed(RETRY_DELAY), stop=stop_after_attempt(2)))
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        name = ev.get("name", "?")
        note(f"{name}:try")
        if f"{name}:failed" not in LOG.read_text():
            note(f"{name}:failed")
            raise ConnectionError("not yet")
        return StopEvent(result="got through")


class Works(Workflow):
    """One step of `seconds`."""

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        name = ev.get("name", "?")
        note(f"{name}:begin")
        ctx.write_event_to_stream(Told(n=0))
        await asyncio.sleep(ev.get("seconds", 60))
        note(f"{name}:end")
        return StopEvent(result="worked")


class Goes(Workflow):
    """Step after step, `last` of them."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Next:
        await ctx.store.set("passed", 0)
        return Next(n=0, last=ev.last)

    @step
    async def go(self, ctx: Context, ev: Next) -> Next | StopEvent:
        await ctx.store.set("passed", ev.n + 1)
        note(f"go:{ev.n}")
        if ev.n % 100 == 0:
            ctx.write_event_to_stream(Told(n=ev.n))
        return Next(n=ev.n + 1, last=ev.last) if ev.n + 1 < ev.last else StopEvent(result=await ctx.store.get("passed"))


server = WorkflowServer()
for served, workflow in {
    "tells": Tells(timeout=None), "waits": Waits(timeout=None), "tries": Tries(timeout=None), "works": Works(timeout=None),
    "goes": Goes(timeout=None), "hurries": Waits(timeout=TIMEOUT),
}.items():  # fmt: skip
    server.add_workflow(served, workflow, additional_events=[HumanResponseEvent])
