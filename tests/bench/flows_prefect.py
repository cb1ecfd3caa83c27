"""Prefect's half of `tests.bench.flows`: run as a program under an interpreter that has Prefect. Imports nothing of ours.

Reads one line of JSON at a time, `{"what", "count"}`, does that, and answers with a line. Flows are called where they are,
which is the fastest that Prefect can do: no worker has to look for them, and the tasks' states go to the server meanwhile.
"""

import asyncio
import json
import sys
import time
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

AT_A_TIME = 8
FEW = 5  # tasks of each of many executions
_FIRST: list[float] = []


@task(cache_policy=NO_CACHE, persist_result=False)  # type: ignore[untyped-decorator]  # not installed where types are checked
async def size(text: str) -> dict[str, int]:
    _FIRST.append(time.perf_counter())
    return {
        "characters": len(text),
        "bytes": len(text.encode()),
        "words": len(text.split()),
        "lines": len(text.splitlines()),
    }


@flow(persist_result=False)  # type: ignore[untyped-decorator]  # the same
async def sequence(count: int) -> int:
    text = "A text."
    for _ in range(count):
        measured = await size(text)
        text = f"{measured['characters']} letters"
    return len(text)


@flow(persist_result=False)  # type: ignore[untyped-decorator]  # the same
async def parallel(count: int) -> int:
    return len(await asyncio.gather(*(size(f"text {number}") for number in range(count))))


async def start(count: int) -> list[float]:
    """Seconds from the call of a flow to the first line of its first task, one at a time."""
    taken = []
    for _ in range(count):
        _FIRST.clear()
        began = time.perf_counter()
        await sequence(1)
        taken.append(_FIRST[0] - began)
    return taken


async def many(count: int) -> float:
    """Seconds that so many executions of a few tasks take, some at a time."""
    left = list(range(count))

    async def client() -> None:
        while left:
            left.pop()
            await sequence(FEW)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(AT_A_TIME)))
    return time.perf_counter() - began


async def one(what: Any, count: int) -> float:
    began = time.perf_counter()
    await what(count)
    return time.perf_counter() - began


async def main() -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        what, count = order["what"], order["count"]
        taken: Any
        match what:
            case "start":
                taken = await start(count)
            case "many":
                taken = await many(count)
            case "sequence":
                taken = await one(sequence, count)
            case _:
                taken = await one(parallel, count)
        sys.stdout.write(json.dumps(taken) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
