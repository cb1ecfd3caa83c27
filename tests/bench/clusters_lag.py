"""How long after a change on the cluster an endpoint's state follows, as a client sees it, and a plain watch beside."""

import asyncio
import contextlib
import json
import ssl
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx

from services.cluster.runtimes.kubernetes import names, reasons
from services.cluster.runtimes.kubernetes.permissions import NAMESPACE
from tests.bench.client import Connection
from tests.bench.clusters import Json
from tests.bench.server import Stepway
from tests.testbed.kube import ApiServer

LOOK_EVERY = 0.05  # seconds, for each endpoint: asking more often would cost the server what is measured
PATIENCE = 60.0
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
STATES = {True: "running", False: "unavailable"}


@dataclass(frozen=True, slots=True)
class Seen:
    """Seconds from the sending of each change until Stepway's state, and a plain watch, show it."""

    ours: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)


async def measure_lag(stepway: Stepway, api: ApiServer, endpoints: list[str], rounds: int, together: int) -> Seen:
    """In each round, pods of so many endpoints become unready together, and ready again, one pod of each endpoint."""
    seen = Seen()
    headers = {"Authorization": api.admin.headers["Authorization"]}
    context = ssl.create_default_context(cadata=api.authority.pair.certificate.decode())
    async with httpx.AsyncClient(
        base_url=api.url, headers=headers, verify=context, trust_env=False, timeout=PATIENCE
    ) as client:
        listed = (await client.get(PODS, params={"labelSelector": names.MANAGED_BY})).raise_for_status().json()
        pods = {one["metadata"]["labels"].get(names.ENDPOINT): one["metadata"]["name"] for one in listed["items"]}
        watch = _Watch(client, listed["metadata"]["resourceVersion"])
        following = asyncio.create_task(watch.run())
        lookers = [await Connection.open(stepway.host, stepway.key) for _ in range(together)]
        try:
            for number in range(rounds):
                first = number * together
                chosen = [endpoints[(first + offset) % len(endpoints)] for offset in range(together)]
                for ready in (False, True):
                    await asyncio.gather(
                        *(
                            _one(client, watch, looker, endpoint, pods[endpoint], ready, seen)
                            for looker, endpoint in zip(lookers, chosen, strict=True)
                        )
                    )
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
            for looker in lookers:
                looker.close()
    return seen


async def _one(
    client: httpx.AsyncClient, watch: "_Watch", looker: Connection, endpoint: str, pod: str, ready: bool, seen: Seen
) -> None:
    shown = watch.expect(pod, ready)
    sent = time.perf_counter()
    patch = {"Content-Type": "application/strategic-merge-patch+json"}
    answer = await client.patch(f"{PODS}/{pod}/status", headers=patch, content=json.dumps(_status(ready)))
    answer.raise_for_status()
    async with asyncio.timeout(PATIENCE):
        while json.loads(await looker.request("GET", f"/endpoints/{endpoint}"))["state"] != STATES[ready]:
            await asyncio.sleep(LOOK_EVERY)
        seen.ours.append(time.perf_counter() - sent)
        seen.floor.append(await shown - sent)


def _status(ready: bool) -> Json:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    kinds = ("Ready", "ContainersReady")
    return {
        "status": {"conditions": [{"type": kind, "status": str(ready), "lastTransitionTime": now} for kind in kinds]}
    }


class _Watch:
    """Notes when the API server tells a plain watch of each change that is expected."""

    def __init__(self, client: httpx.AsyncClient, version: str) -> None:
        self._client = client
        self._query = {"watch": "true", "labelSelector": names.MANAGED_BY, "resourceVersion": version}
        self._expected: dict[tuple[str, bool], asyncio.Future[float]] = {}

    def expect(self, pod: str, ready: bool) -> "asyncio.Future[float]":
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._expected[pod, ready] = future
        return future

    async def run(self) -> None:
        async with self._client.stream("GET", PODS, params=self._query, timeout=None) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                pod = json.loads(line)["object"]
                expected = self._expected.pop((pod["metadata"]["name"], reasons.is_ready(pod)), None)
                if expected is not None:
                    expected.set_result(time.perf_counter())
