"""Runs for tests of stores, and waits for what other servers do."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from stepway.runner.store import End, Entry, Event, Handler, NewRun, Saved, Store

LONG = 30.0  # seconds; nothing here takes as long, unless it is broken


async def new(store: Store, handler_id: str, run_id: str | None = None, *, owned: bool = True, **more: Any) -> Handler:
    given = {"workflow_name": "flow", "start": '{"start": 1}', **more}
    return await store.create(
        NewRun(handler_id=handler_id, run_id=run_id or f"run of {handler_id}", owned=owned, **given)
    )


def entry(tick: int, event: int, *, ticks: int = 1, events: int = 1, **more: Any) -> Entry:
    """An entry whose ticks and events say their numbers."""
    return Entry(
        tick, [f"tick {n}" for n in range(tick, tick + ticks)],
        [Event(n, n % 2 == 1, f"event {n}") for n in range(event, event + events)], **more,
    )  # fmt: skip


def completed(**more: Any) -> End:
    return End("completed", result={"value": {"result": 42}}, **more)


async def numbers(
    store: Store, run_id: str, after: int = -1, limit: int = 100_000, *, internal: bool = True
) -> list[int]:
    return [one.seq for one in await store.events(run_id, after, limit, internal=internal)]


async def claim(store: Store, places: int = 1000, workflow: str = "flow") -> Saved:
    """Claim until there is one."""
    return (await claim_all(store, 1, places, workflow))[0]


async def claim_all(store: Store, count: int, places: int = 1000, workflow: str = "flow") -> Sequence[Saved]:
    found: list[Saved] = []
    async with asyncio.timeout(LONG):
        while len(found) < count:
            found += await store.claim({workflow: places - len(found)})
            if len(found) < count:
                await store.due()
    return found


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    deadline = time.monotonic() + LONG
    while not (found := await condition()):
        assert time.monotonic() < deadline, "This has not come true"
        await asyncio.sleep(0.02)
    return found
