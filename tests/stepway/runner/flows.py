"""Workflows of every kind that the library has, for tests of the server. Steps write their names to `done` as they end."""

import asyncio
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field
from workflows import Context, Workflow, step
from workflows.decorators import catch_error
from workflows.events import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StepFailedEvent,
    StopEvent,
)
from workflows.resource import Resource
from workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

done: list[str] = []


class Progress(Event):
    at: int


class Order(StartEvent):
    item: str
    number: int = Field(ge=1)


class Receipt(StopEvent):
    item: str
    price: float


class Part(Event):
    n: int


class Squared(Event):
    n: int


class Middle(Event):
    words: list[Any] = Field(default_factory=list)


class Hello(Workflow):
    """One step."""

    @step
    async def greet(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=f"Hello, {ev.get('name', 'World')}!")


class Shop(Workflow):
    """Start and stop events of its own, and three steps."""

    @step
    async def take(self, ctx: Context, ev: Order) -> Middle:
        ctx.write_event_to_stream(Progress(at=1))
        done.append("take")
        return Middle(words=[ev.item] * ev.number)

    @step
    async def price(self, ctx: Context, ev: Middle) -> Squared:
        ctx.write_event_to_stream(Progress(at=2))
        done.append("price")
        return Squared(n=len(ev.words))

    @step
    async def write(self, ctx: Context, ev: Squared) -> Receipt:
        done.append("write")
        return Receipt(item="tea", price=ev.n * 2.5)


class Squares(Workflow):
    """Fans out by returning a list, and collects."""

    @step
    async def split(self, ev: StartEvent) -> list[Part]:
        return [Part(n=n) for n in range(ev.get("count", 5))]

    @step(num_workers=3)
    async def square(self, ev: Part) -> Squared:
        await asyncio.sleep(0.001 * (5 - ev.n % 5))
        return Squared(n=ev.n**2)

    @step
    async def add(self, evs: list[Squared]) -> StopEvent:
        return StopEvent(result=sum(one.n for one in evs))


class Sends(Workflow):
    """Fans out by `ctx.send_event`, and collects by `ctx.collect_events`."""

    @step
    async def split(self, ctx: Context, ev: StartEvent) -> Part | None:
        await ctx.store.set("count", 4)
        for n in range(4):
            ctx.send_event(Part(n=n))
        return None

    @step(num_workers=2)
    async def square(self, ev: Part) -> Squared:
        return Squared(n=ev.n**2)

    @step
    async def add(self, ctx: Context, ev: Squared) -> StopEvent | None:
        found = ctx.collect_events(ev, [Squared] * await ctx.store.get("count"))
        return None if found is None else StopEvent(result=sorted(one.n for one in found))


class Counted(BaseModel):
    times: int = 0
    words: list[str] = []


class Remembers(Workflow):
    """Typed state, which the next run of the handler finds again."""

    @step
    async def count(self, ctx: Context[Counted], ev: StartEvent) -> StopEvent:
        async with ctx.store.edit_state() as state:
            state.times += 1
            state.words.append(ev.get("word", "-"))
        return StopEvent(result=(await ctx.store.get_state()).model_dump())


class Asks(Workflow):
    """Waits for a person in the middle of a step."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> Middle:
        done.append("ask")
        return Middle(words=[ev.get("topic", "?")])

    @step
    async def wait(self, ctx: Context, ev: Middle) -> StopEvent:
        answer = await ctx.wait_for_event(
            HumanResponseEvent, waiter_event=InputRequiredEvent(prefix="Go on?"), timeout=ev.get("seconds", 3600)
        )
        done.append("wait")
        return StopEvent(result=[*ev.words, answer.response])


class Talks(Workflow):
    """Asks by an event of its own, answered to a step of its own."""

    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent(prefix="Name?")

    @step
    async def answer(self, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=f"Hello, {ev.response}")


class Flaky(Workflow):
    """Fails `times` times before it gets through; it may try five times."""

    tried: ClassVar[dict[str, int]] = {}

    @step(retry_policy=retry_policy(wait=wait_fixed(0.01), stop=stop_after_attempt(5)))
    async def work(self, ev: StartEvent) -> StopEvent:
        key = ev.get("key", "")
        self.tried[key] = self.tried.get(key, 0) + 1
        if self.tried[key] <= ev.get("times", 2):
            raise ConnectionError(f"no {self.tried[key]}")
        return StopEvent(result=self.tried[key])


class Fails(Workflow):
    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        raise ValueError(ev.get("message", "it cannot be"))


class Recovers(Workflow):
    """A step's failure is caught by a handler."""

    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        raise KeyError("lost")

    @catch_error
    async def rescue(self, ev: StepFailedEvent) -> StopEvent:
        return StopEvent(result=f"rescued {ev.step_name}: {type(ev.exception).__name__}")


class Sleeps(Workflow):
    """A step as long as it is told."""

    @step
    async def sleep(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Progress(at=0))
        await asyncio.sleep(ev.get("seconds", 60))
        return StopEvent(result="slept")


class Stubborn(Workflow):
    """A step that does not let itself be cancelled."""

    @step
    async def hold(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Progress(at=0))
        loop = asyncio.get_running_loop()
        until = loop.time() + ev.get("seconds", 2)
        while loop.time() < until:
            try:
                await asyncio.sleep(until - loop.time())
            except asyncio.CancelledError:
                pass
        return StopEvent(result="held")


class Tool:
    name = "hammer"


def make_tool() -> Tool:
    done.append("tool")
    return Tool()


class Uses(Workflow):
    """A resource is made once and given to steps."""

    @step
    async def use(self, ev: StartEvent, tool: Annotated[Tool, Resource(make_tool)]) -> StopEvent:
        return StopEvent(result=tool.name)


class Opaque:
    pass


class Holds(Event):
    thing: Any = None


class OpaqueResult(Workflow):
    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=Opaque())


class OpaqueMiddle(Workflow):
    """What cannot be stored goes from step to step."""

    @step
    async def give(self, ctx: Context, ev: StartEvent) -> Holds:
        ctx.write_event_to_stream(Holds(thing=Opaque()))
        return Holds(thing=Opaque())

    @step
    async def take(self, ev: Holds) -> StopEvent:
        return StopEvent(result=type(ev.thing).__name__)


class OpaqueState(Workflow):
    @step
    async def keep(self, ctx: Context, ev: StartEvent) -> Middle:
        await ctx.store.set("thing", Opaque())
        return Middle()

    @step
    async def use(self, ctx: Context, ev: Middle) -> StopEvent:
        return StopEvent(result=type(await ctx.store.get("thing")).__name__)


class Threads(Workflow):
    """A step that is no coroutine runs in a thread."""

    @step
    def work(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=sum(range(ev.get("n", 10))))


class Big(Workflow):
    """Gives what it was given, through a step in between."""

    @step
    async def first(self, ctx: Context, ev: StartEvent) -> Middle:
        await ctx.store.set("text", ev.text)
        return Middle(words=[ev.text])

    @step
    async def second(self, ctx: Context, ev: Middle) -> StopEvent:
        return StopEvent(result=[ev.words[0], await ctx.store.get("text")])


class Outer(Workflow):
    """Runs a served workflow within a step, by the library's own means."""

    inner = Hello()

    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await self.inner.run(name="inner"))
