"""The load of `tests.bench.runner`, in a process of its own, alike for both servers: their routes and bodies are the same."""

import asyncio
import json
import time

from tests.bench.client import Connection

Host = tuple[str, int]
AT_A_TIME = 16  # runs that are started without waiting for their ends
_GIVEN = json.dumps({"start_event": {"name": "bench"}}).encode()


async def runs(host: Host, clients: int, seconds: float) -> tuple[float, list[float]]:
    """Runs of the one-step flow per second, and how long each took, by so many clients who ask again and again."""
    taken: list[float] = []
    end = time.perf_counter() + seconds

    async def client() -> None:
        connection = await Connection.open(host, "")
        while (began := time.perf_counter()) < end:
            answer = await connection.request("POST", "/workflows/one/run", _GIVEN)
            taken.append(time.perf_counter() - began)
            if b"Hello, bench!" not in answer:
                raise RuntimeError(f"the run has not ended as it should: {answer[:500]!r}")
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return len(taken) / (time.perf_counter() - began), taken


async def stream(host: Host, count: int) -> tuple[float, float]:
    """Seconds from asking for a run to the end of its stream, which a reader follows; and those of reading it once more."""
    sender, taken = await Connection.open(host, ""), []
    body = json.dumps({"start_event": {"count": count}}).encode()
    began = time.perf_counter()
    handler = json.loads(await sender.request("POST", "/workflows/many/run-nowait", body))["handler_id"]
    for _ in range(2):
        reader = await Connection.open(host, "")
        status = await reader.send("GET", f"/events/{handler}?after_sequence=-1")
        if status != 200:
            raise RuntimeError(f"the stream answered {status}")
        seen = 0
        while chunk := await reader.read_chunk():
            seen += chunk.count(b'"at":') + chunk.count(b'"at": ')
        taken.append(time.perf_counter() - began)
        if seen != count:
            raise RuntimeError(f"{seen} of {count} events have come")
        reader.close()
        began = time.perf_counter()
    sender.close()
    return taken[0], taken[1]


async def begin(host: Host, flow: str, count: int) -> None:
    """Start so many runs of a flow that does not end by itself."""
    left = list(range(count))

    async def client() -> None:
        connection = await Connection.open(host, "")
        while left:
            body = json.dumps({"start_event": {"number": left.pop()}}).encode()
            await connection.request("POST", f"/workflows/{flow}/run-nowait", body)
        connection.close()

    await asyncio.gather(*(client() for _ in range(AT_A_TIME)))
