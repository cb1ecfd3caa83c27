"""One event of a workflow to many readers of server-sent events over HTTP."""

import asyncio
import json
import re
import time

from tests.bench.client import Connection, in_process
from tests.bench.figures import Figure, percentile
from tests.bench.server import Stepway

READERS = 500
WIZARD = "/models/local-model-workflow"
EVENT = re.compile(rb"(?m)^id: (\d+)$")


def run(quick: bool) -> list[Figure]:
    with Stepway() as stepway:
        taken = in_process(follow, stepway.host, stepway.key, 10 if quick else 40)
    p50, p99 = (percentile(taken, share) * 1000 for share in (0.5, 0.99))
    note = f"p50 {p50:.0f} ms; from the moment at which the step is sent"
    return [Figure(f"event → {READERS} readers, p99", p99, "ms", at_most=250, note=note)]


async def follow(host: tuple[str, int], key: str, events: int) -> list[float]:
    """Seconds from the sending of a step to the arrival of its event, for each reader and event."""
    sender = await Connection.open(host, key)
    begun = json.loads(await sender.request("POST", WIZARD, b'{"workflow_total_steps": 6, "step_number": 1}'))
    workflow_id = begun["workflow_id"]
    sent: dict[int, float] = {}
    taken: list[float] = []
    following = asyncio.Semaphore(0)

    async def read() -> None:
        reader = await Connection.open(host, key)
        await reader.send("GET", f"/workflows/{workflow_id}/events")
        seen = 0
        while seen <= events:
            for number in map(int, EVENT.findall(await reader.read_some())):
                if number in sent:
                    taken.append(time.perf_counter() - sent[number])
                if seen == 0:
                    following.release()  # it has the event of the beginning
                seen = number
        reader.close()

    tasks = [asyncio.create_task(read()) for _ in range(READERS)]
    for _ in range(READERS):
        await following.acquire()
    for number in range(2, events + 2):
        step = {"workflow_id": workflow_id, "step_number": 3, "name": f"model {number}"}
        sent[number] = time.perf_counter()
        await sender.request("POST", WIZARD, json.dumps(step).encode())
        while len(taken) < (number - 1) * READERS:
            await asyncio.sleep(0.01)
    await asyncio.gather(*tasks)
    return taken
