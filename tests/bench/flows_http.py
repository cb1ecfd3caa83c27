"""Our half of `tests.bench.flows`: executions asked for over HTTP, in a process of its own, by a client that waits for them."""

import asyncio
import json
import time
from typing import Any

from tests.bench.client import Connection

AT_A_TIME = 8  # as in `flows_prefect`
RUNNING = '"state":"running"'


def flow(count: int, *, parallel: bool = False) -> dict[str, Any]:
    """So many small tasks: each measures what the one before gave, or all are by themselves."""
    tasks = []
    for number in range(count):
        text = f"text {number}" if parallel or not number else f"{{{{refs.t{number - 1}.output.characters}}}} letters"
        tasks.append({"ref": f"t{number}", "type": "text.size", "input": {"text": text}})
    return {
        "name": f"bench {count} {'parallel' if parallel else 'sequential'}",
        "execution": "parallel" if parallel else "sequential",
        "tasks": tasks,
    }


async def start(host: tuple[str, int], key: str, workflow: str, count: int) -> list[float]:
    """Seconds from asking for an execution until its reader is told that its first task runs, one at a time."""
    sender, taken = await Connection.open(host, key), []
    for _ in range(count):
        reader = await Connection.open(host, key)
        began = time.perf_counter()
        path = await _execute(sender, workflow)
        await reader.send("GET", f"{path}/events")
        seen = ""
        while not _runs(seen):
            chunk = await reader.read_some()
            if not chunk:
                raise RuntimeError(f"no task has run: {seen[-1000:]}")
            seen += chunk.decode()
        taken.append(time.perf_counter() - began)
        await _end(sender, path)
        reader.close()
    sender.close()
    return taken


async def one(host: tuple[str, int], key: str, workflow: str) -> float:
    """Seconds from asking for an execution to the answer that says that it is completed."""
    connection = await Connection.open(host, key)
    began = time.perf_counter()
    await _end(connection, await _execute(connection, workflow))
    taken = time.perf_counter() - began
    connection.close()
    return taken


async def many(host: tuple[str, int], key: str, workflow: str, count: int) -> float:
    """Seconds that so many executions take, some at a time."""
    left = list(range(count))

    async def client() -> None:
        connection = await Connection.open(host, key)
        while left:
            left.pop()
            await _end(connection, await _execute(connection, workflow))
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(AT_A_TIME)))
    return time.perf_counter() - began


async def _execute(connection: Connection, workflow: str) -> str:
    """The path of a new execution."""
    answer = json.loads(await connection.request("POST", f"/flow/workflows/{workflow}/execute", b"{}"))
    return f"/flow/workflows/{workflow}/executions/{answer['execution_id']}"


async def _end(connection: Connection, path: str) -> None:
    shown: dict[str, Any] = {"status": "PENDING"}
    while shown["status"] in ("PENDING", "RUNNING"):
        shown = json.loads(await connection.request("GET", f"{path}?wait=60"))
    if shown["status"] != "COMPLETED":
        raise RuntimeError(f"the execution has ended {shown['status']}: {shown['error']}")


def _runs(seen: str) -> bool:
    return any("event: step" in one and RUNNING in one.replace(" ", "") for one in seen.split("\n\n"))
