"""Flows that the tests of the HTTP side serve: they use the public library only."""

import asyncio
from typing import Any, ClassVar

from pydantic import Field
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent


class StreamEvent(Event):
    sequence: int


class Greeting(Workflow):
    """The flow of the library's own guide, without its pauses."""

    @step
    async def greet(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for i in range(3):
            ctx.write_event_to_stream(StreamEvent(sequence=i))
        return StopEvent(result=f"Hello, {ev.get('name', 'World')}!")


class Sums(StartEvent):
    numbers: list[int] = Field(min_length=1)
    note: str = ""


class Summed(StopEvent):
    total: int
    note: str


class Adding(Workflow):
    """Start and stop events of its own."""

    @step
    async def add(self, ev: Sums) -> Summed:
        return Summed(total=sum(ev.numbers), note=ev.note)


class Question(InputRequiredEvent):
    prefix: str = "?"


class Answer(HumanResponseEvent):
    response: str


class Asking(Workflow):
    """Waits for a person."""

    @step
    async def ask(self, ev: StartEvent) -> Question:
        return Question(prefix="name?")

    @step
    async def answered(self, ev: Answer) -> StopEvent:
        return StopEvent(result={"response": ev.response})


class Hidden(Event):
    word: str


class Waiting(Workflow):
    """Waits for an event that no signature shows."""

    @step
    async def wait(self, ctx: Context, ev: StartEvent) -> StopEvent:
        hidden = await ctx.wait_for_event(Hidden, waiter_event=Question(prefix="hidden?"))
        return StopEvent(result=hidden.word)


class Failing(Workflow):
    @step
    async def fail(self, ev: StartEvent) -> StopEvent:
        raise RuntimeError(f"no {ev.get('what', 'luck')}")


class Slow(Workflow):
    """Ends when it is let go: `gates[key].set()`, or after `timeout` s of the flow."""

    gates: ClassVar[dict[str, asyncio.Event]] = {}

    @step
    async def hold(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(StreamEvent(sequence=0))
        gate = self.gates.setdefault(str(ev.get("key", "")), asyncio.Event())
        await gate.wait()
        ctx.write_event_to_stream(StreamEvent(sequence=1))
        return StopEvent(result="let go")


class Counting(Workflow):
    """Counts its runs in the context's store: a handler given again goes on."""

    @step
    async def count(self, ctx: Context, ev: StartEvent) -> StopEvent:
        runs = await ctx.store.get("runs", default=0) + 1
        await ctx.store.set("runs", runs)
        return StopEvent(result=runs)


class Odd(Workflow):
    """Results that are hard to write as JSON."""

    @step
    async def make(self, ev: StartEvent) -> StopEvent:
        results: dict[str, Any] = {"nan": float("nan"), "none": None, "list": [1, "two"], "text": "a\u0000b\u2028"}
        return StopEvent(result=results[ev.get("kind", "none")])


class Many(Workflow):
    """Writes as many events as it is asked for, each with as much text."""

    @step
    async def write(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for i in range(ev.get("events", 100)):
            ctx.write_event_to_stream(StreamEvent(sequence=i, text="x" * ev.get("size", 0)))
            await asyncio.sleep(0)
        return StopEvent(result="written")
