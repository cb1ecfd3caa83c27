"""A file for `stepway serve`: a long way with every kind of step, that kills its server where `KILL_AT` says, once.

Each point that is reached is a line of the file `LOG`.
"""

import asyncio
import os
import signal
from pathlib import Path

from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent
from workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from stepway.runner import WorkflowServer

LOG = Path(os.environ["LOG"])


def reach(point: str) -> None:
    with LOG.open("a") as log:
        log.write(f"{point}\n")
    once = LOG.with_suffix(".killed")
    if point == os.environ.get("KILL_AT") and not once.exists():
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class Progress(Event):
    at: str


class Part(Event):
    n: int


class Squared(Event):
    n: int


class Summed(Event):
    total: int


class Tried(Event):
    total: int


class Go(StartEvent):
    count: int = 4


class Journey(Workflow):
    @step
    async def split(self, ctx: Context, ev: Go) -> list[Part]:
        reach("split:begin")
        ctx.write_event_to_stream(Progress(at="split"))
        await ctx.store.set("visits", [*await ctx.store.get("visits", []), "split"])
        await asyncio.sleep(0.02)
        reach("split:end")
        return [Part(n=n) for n in range(ev.count)]

    @step(num_workers=2)
    async def square(self, ctx: Context, ev: Part) -> Squared:
        reach(f"square{ev.n}:begin")
        ctx.write_event_to_stream(Progress(at=f"square{ev.n}"))
        await asyncio.sleep(0.1 * (ev.n + 1))  # what has ended long before another one is killed has been recorded
        reach(f"square{ev.n}:end")
        return Squared(n=ev.n**2)

    @step
    async def add(self, ctx: Context, evs: list[Squared]) -> Summed:
        reach("add:begin")
        await ctx.store.set("visits", [*await ctx.store.get("visits"), "add"])
        reach("add:end")
        return Summed(total=sum(one.n for one in evs))

    @step(retry_policy=retry_policy(wait=wait_fixed(0.05), stop=stop_after_attempt(6)))
    async def try_hard(self, ctx: Context, ev: Summed) -> Tried:
        reach("try:begin")
        if LOG.read_text().count("try:begin") < 3:
            raise ConnectionError("not yet")
        reach("try:end")
        return Tried(total=ev.total)

    @step
    async def ask(self, ctx: Context, ev: Tried) -> StopEvent:
        reach("ask:begin")
        answer = await ctx.wait_for_event(HumanResponseEvent, waiter_event=InputRequiredEvent(prefix="Go on?"))
        reach("ask:end")
        visits = await ctx.store.get("visits")
        return StopEvent(result={"total": ev.total, "answer": answer.response, "visits": visits})


server = WorkflowServer()
server.add_workflow("journey", Journey(timeout=None), additional_events=[HumanResponseEvent])
