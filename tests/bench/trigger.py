"""From the answer to a trigger until the job's first step runs, as a client sees it: it follows the workflow's events."""

import asyncio
import json
import time
from uuid import uuid4

from tests.bench.client import Connection, in_process
from tests.bench.figures import Figure, percentile
from tests.bench.files import small_safetensors
from tests.bench.server import Stepway

WIZARD = "/models/local-model-workflow"
RUNNING = '"state":"running"'


def run(quick: bool) -> list[Figure]:
    with Stepway() as stepway:
        model = small_safetensors(stepway.models / "model.safetensors")
        taken = in_process(start_jobs, stepway.host, stepway.key, str(model), 30 if quick else 150)
    p50, p99 = (percentile(taken, share) * 1000 for share in (0.5, 0.99))
    return [Figure("trigger answered → first step running, p50", p50, "ms", at_most=20, note=f"p99 {p99:.1f} ms")]


async def start_jobs(host: tuple[str, int], key: str, model: str, count: int) -> list[float]:
    """Seconds from the last byte of a trigger's answer to the event of the first running step; one job at a time."""
    sender = await Connection.open(host, key)
    taken: list[float] = []
    for _ in range(count):
        step = {
            "workflow_total_steps": 6, "step_number": 3, "modality": "llm", "provider_type": "disk",
            "name": f"model {uuid4()}", "uri": model, "icon": "icons/providers/openai.png",
        }  # fmt: skip
        begun = json.loads(await sender.request("POST", WIZARD, json.dumps(step).encode()))
        workflow_id = begun["workflow_id"]
        reader = await Connection.open(host, key)
        await reader.send("GET", f"/workflows/{workflow_id}/events")
        running: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        following = asyncio.create_task(_follow(reader, running))
        trigger = {"workflow_id": workflow_id, "step_number": 3, "trigger_workflow": True}
        await sender.request("POST", WIZARD, json.dumps(trigger).encode())
        answered = time.perf_counter()
        taken.append(max(await running - answered, 0.0))
        await following
        reader.close()
    return taken


async def _follow(reader: Connection, running: "asyncio.Future[float]") -> None:
    """Note when the first step runs; to the end of the stream."""
    seen = ""
    while chunk := await reader.read_some():
        seen += chunk.decode()
        if not running.done() and any(
            "event: step" in one and RUNNING in one.replace(" ", "") for one in seen.split("\n\n")
        ):
            running.set_result(time.perf_counter())
        if "event: end" in seen:
            break
    if not running.done():
        running.set_exception(RuntimeError(f"no step has run: {seen[-1000:]}"))
