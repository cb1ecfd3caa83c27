"""What somebody would write with Dapr's SDK alone: workflows that run one activity after the other, and nothing more.

`hand_steps` has what Stepway's ledger must be told in any case: each activity begins and succeeds through the app, by the
sidecar's invocation, and the last one ends the run. `plain_steps` calls nobody. It knows nothing of retries,
cancel, undo, leases, or versions.
"""

import asyncio
import json
import time
from collections.abc import Generator
from typing import Any

import aiohttp
from dapr.ext.workflow import DaprWorkflowClient, DaprWorkflowContext, WorkflowActivityContext, WorkflowRuntime
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from shared.jobs.dapr.sidecar import Sidecar
from shared.jobs.dapr.worker import QUIET, THREADS

SECONDS = 120.0  # for one workflow, and one call

Json = dict[str, Any]


def hand_steps(context: DaprWorkflowContext, given: Json) -> Generator[Any, Any, None]:
    run, first = {"job": given["job"], "fence": given["fence"]}, None
    for number in range(given["count"]):
        at = yield context.call_activity("hand_step", input={**run, "key": f"step-{number}"})
        first = at if first is None else first
    yield context.call_activity("hand_end", input={**run, "result": first})


def plain_steps(context: DaprWorkflowContext, given: Json) -> Generator[Any, Any, Any]:
    first = None
    for number in range(given["count"]):
        at = yield context.call_activity("plain_step", input=number)
        first = at if first is None else first
    return first


async def plain_step(context: WorkflowActivityContext, number: int) -> float:
    return time.perf_counter()


class ByHand:
    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar
        self._http: aiohttp.ClientSession | None = None
        self.routes = [Route("/run", self._run, methods=["POST"])]

    def start(self) -> None:
        self._sidecar.show_token()
        address = self._sidecar.address
        place = (address.host, str(address.grpc_port))
        self._workflows = DaprWorkflowClient(*place)
        self._runtime = WorkflowRuntime(*place, maximum_thread_pool_workers=THREADS, logger_options=QUIET)
        for workflow in (hand_steps, plain_steps):
            self._runtime.register_workflow(workflow)
        self._runtime.register_activity(self._step, name="hand_step")
        self._runtime.register_activity(self._end, name="hand_end")
        self._runtime.register_activity(plain_step)
        self._runtime.start()  # type: ignore[no-untyped-call]  # Dapr's

    def close(self) -> None:
        self._runtime.shutdown()  # type: ignore[no-untyped-call]  # Dapr's
        self._workflows.close()  # type: ignore[no-untyped-call]  # the same

    async def _step(self, context: WorkflowActivityContext, given: Json) -> float:
        begun = await self._call("begin", {**given, "title": "A step", "weight": 1.0, "durable": False})
        at = time.perf_counter()
        await self._call("succeed", {**given, "token": begun["token"], "result": at})
        return at

    async def _end(self, context: WorkflowActivityContext, given: Json) -> None:
        await self._call("end_succeeded", given)

    async def _call(self, method: str, given: Json) -> Any:
        """On the event loop of Dapr's client, where its activities run."""
        if self._http is None:
            self._http = aiohttp.ClientSession(raise_for_status=True)
        url, headers = self._sidecar.way_to("app", f"internal/jobs/{method}")
        async with self._http.post(url, data=json.dumps(given), headers=headers) as answer:
            return await answer.json()

    async def _run(self, request: Request) -> JSONResponse:
        """Start a workflow; with `wait`, answer when it has ended, with what it has returned."""
        given = await request.json()
        name, instance, data = given["name"], given["instance"], given["input"]
        await asyncio.to_thread(self._workflows.schedule_new_workflow, name, input=data, instance_id=instance)
        if not given["wait"]:
            return JSONResponse(None)
        wait = self._workflows.wait_for_workflow_completion
        state = await asyncio.to_thread(wait, instance, timeout_in_seconds=int(SECONDS))
        assert state is not None
        assert state.runtime_status.name == "COMPLETED", state.runtime_status
        return JSONResponse(json.loads(state.serialized_output or "null"))
