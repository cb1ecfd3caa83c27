"""Workers of two pods with real pods: they find each other by name, are ready together, form anew, and roll as groups.

The program that forms a group is the one that runs in vLLM's image. `ray` and `vllm` are stand-ins, as neither runs here:
one keeps a connection between the pods, the other is the server of all tests of pods.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.cluster.engines import vllm_group
from services.cluster.runtimes.base import Observation, Workload
from services.cluster.runtimes.containers import Container, Probes
from services.cluster.runtimes.kubernetes.runtime import KubernetesRuntime
from tests.services.cluster.engines.test_vllm_group import RAY
from tests.services.cluster.runtimes.kubernetes.support import KEY, SERVER, connected, container, workload
from tests.testbed.cluster import Cluster

PODS = "/api/v1/namespaces/stepway/pods"
FORM = f"""
import os, sys
os.makedirs("/tmp/bin", exist_ok=True)
for name, program in (("ray", {RAY!r}), ("vllm", {SERVER!r})):
    with open("/tmp/bin/" + name, "w") as made:
        made.write("#!" + sys.executable + "\\n" + program)
    os.chmod("/tmp/bin/" + name, 0o755)
os.environ["PATH"] = "/tmp/bin:" + os.environ["PATH"]
os.execv(sys.executable, [sys.executable, "/etc/stepway/files/vllm_group.py", "--port=8080", "--", "vllm", "serve"])
"""


def group(endpoint_id: str, generation: int = 1, replicas: int = 1, **environment: str) -> Workload:
    made: Container = container(
        FORM,
        pods=2,
        files={"vllm_group.py": Path(vllm_group.__file__).read_text()},
        environment=environment,
        probes=Probes(start_seconds=60, interval=2, timeout=3),
        stop_grace=20,
    )
    return workload(endpoint_id, generation, replicas, container=made)


@pytest.fixture
async def runtime(cluster: Cluster) -> AsyncIterator[KubernetesRuntime]:
    async with connected(cluster.api) as runtime:
        yield runtime
        await asyncio.gather(*(runtime.remove(endpoint_id) for endpoint_id in await runtime.observe()))
        assert await runtime.orphans(known=()) == []


async def who(runtime: KubernetesRuntime, seen: Observation, worker: int = 0) -> str:
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(transport=runtime.transport(), headers=headers, timeout=10) as client:
        return (await client.get(f"{seen.workers[worker].url}/who")).text


def behind(cluster: Cluster, name: str) -> set[str]:
    """The pods that a Service leads to."""
    path = "/apis/discovery.k8s.io/v1/namespaces/stepway/endpointslices"
    found = cluster.api.get(path, labelSelector=f"kubernetes.io/service-name={name}")["items"]
    ready = [one for each in found for one in each["endpoints"] or [] if one["conditions"]["ready"]]
    return {one["targetRef"]["name"] for one in ready}


async def test_a_group_serves_as_one_and_forms_anew_when_one_of_it_is_gone(
    runtime: KubernetesRuntime, cluster: Cluster
) -> None:
    await runtime.apply(group("pair"))
    seen = await runtime.wait_ready("pair", 1, 120)
    assert [(one.id, one.state, one.restarts) for one in seen.workers] == [("ep-pair-0", "ready", 0)]
    assert await who(runtime, seen) == "ep-pair-0"
    async with asyncio.timeout(30):
        while behind(cluster, "ep-pair") != {"ep-pair-0"}:
            await asyncio.sleep(0.1)
    lines = await runtime.logs("pair", 0, tail=50)
    assert {line.worker for line in lines if line.text.startswith("group: ")} == {"ep-pair-0", "ep-pair-r1-0"}

    cluster.api.admin.delete(f"{PODS}/ep-pair-r1-0", params={"gracePeriodSeconds": "0"}).raise_for_status()
    async with asyncio.timeout(120):  # the leader loses it, ends, and starts anew with the new one
        while not ((one := await runtime.observe_one("pair")) and one.ready and one.workers[0].restarts):
            await asyncio.sleep(0.2)
    assert await who(runtime, one) == "ep-pair-0"


async def test_an_update_goes_from_group_to_group_and_one_that_fails_leaves_the_others(
    runtime: KubernetesRuntime, cluster: Cluster
) -> None:
    await runtime.apply(group("pairs", replicas=2))
    await runtime.wait_ready("pairs", 2, 120)
    served: list[int] = []
    stop = asyncio.Event()

    async def watch() -> None:
        while not stop.is_set():
            seen = await runtime.observe_one("pairs")
            served.append(len(seen.ready) if seen is not None else 0)
            await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    await runtime.apply(group("pairs", 2, 2, VERSION="2"))
    seen = await runtime.wait_ready("pairs", 2, 240)
    assert [(one.generation, one.state) for one in seen.workers] == [(2, "ready"), (2, "ready")]
    await runtime.apply(group("pairs", 3, 2, HOME="/nowhere", PYTHONHOME="/nowhere"))  # Python does not start there
    async with asyncio.timeout(120):
        while not ((one := await runtime.observe_one("pairs")) and one.workers[-1].reason and one.workers[-1].restarts):
            await asyncio.sleep(0.2)
    assert [(worker.id, worker.generation) for worker in one.ready] == [("ep-pairs-0", 2)]
    assert await who(runtime, one) == "ep-pairs-0"
    await runtime.apply(group("pairs", 4, 2, VERSION="2"))  # back to what ran
    seen = await runtime.wait_ready("pairs", 2, 240)
    stop.set()
    await watching
    assert min(served) >= 1
    assert states(cluster) == {"Running": 4}


def states(cluster: Cluster) -> dict[str, int]:
    found: dict[str, Any] = cluster.api.get(PODS, labelSelector="stepway/endpoint=pairs")
    phases = [one["status"]["phase"] for one in found["items"] if not one["metadata"].get("deletionTimestamp")]
    return {phase: phases.count(phase) for phase in phases}
