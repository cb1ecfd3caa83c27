"""The flows that `tests.bench.runner` has both servers serve: nothing but the authoring library is imported."""

import asyncio
import os

from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent


class Progress(Event):
    at: int
    text: str


class Half(Event):
    number: int


class One(Workflow):
    """One step."""

    @step
    async def greet(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=f"Hello, {ev.get('name', 'World')}!")


class Many(Workflow):
    """As many events as are asked for, with room for others between two of them."""

    @step
    async def write(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for at in range(ev.get("count")):
            ctx.write_event_to_stream(Progress(at=at, text="some fifty characters of what a model has to say"))
            await asyncio.sleep(0)
        return StopEvent(result=ev.get("count"))


class Person(Workflow):
    """Waits for someone's answer."""

    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent(prefix="Shall I?")

    @step
    async def hear(self, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=ev.get("response"))


class Long(Workflow):
    """Ends a step, and is in the next one for good, of which it tells the file STEPS by a byte."""

    @step
    async def begin(self, ev: StartEvent) -> Half:
        return Half(number=ev.get("number"))

    @step
    async def stay(self, ev: Half) -> StopEvent:
        file = os.open(os.environ["STEPS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, b".")
        os.close(file)
        await asyncio.Event().wait()
        return StopEvent()


one, many = One(timeout=None), Many(timeout=None)
person, long = Person(timeout=None), Long(timeout=None)
