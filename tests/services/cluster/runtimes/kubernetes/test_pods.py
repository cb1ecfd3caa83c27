"""The runtime on a real cluster with real pods: from apply to gone."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from services.cluster.runtimes.base import Observation, UnknownEndpoint
from services.cluster.runtimes.containers import Resources
from services.cluster.runtimes.kubernetes import reasons
from services.cluster.runtimes.kubernetes.runtime import KubernetesRuntime
from shared.jobs.outcomes import Permanent
from tests.services.cluster.runtimes.kubernetes.support import KEY, MIB, connected, container, workload
from tests.testbed.cluster import Cluster

BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
async def runtime(cluster: Cluster) -> AsyncIterator[KubernetesRuntime]:
    async with connected(cluster.api) as runtime:
        yield runtime
        await asyncio.gather(*(runtime.remove(endpoint_id) for endpoint_id in await runtime.observe()))
        assert await runtime.orphans(known=()) == []


def client(runtime: KubernetesRuntime, seen: Observation, worker: int = 0) -> httpx.AsyncClient:
    url = seen.workers[worker].url
    assert url is not None
    return httpx.AsyncClient(transport=runtime.transport(), base_url=url, headers=BEARER, timeout=10)


async def test_an_endpoint_from_apply_to_gone(runtime: KubernetesRuntime, cluster: Cluster) -> None:
    said: list[tuple[float | None, str]] = []
    seen = await runtime.apply(workload("one", replicas=2))
    assert (seen.generation, seen.replicas) == (1, 2)
    seen = await runtime.wait_ready("one", 2, 60, lambda percent, message: said.append((percent, message)))
    assert said[-1] == (100.0, "2 of 2 workers ready")
    assert [worker.state for worker in seen.workers] == ["ready", "ready"]
    assert {worker.generation for worker in seen.workers} == {1}
    assert {worker.node for worker in seen.workers} == {"node-1"}
    assert seen.reason is None

    for number in range(2):
        async with client(runtime, seen, number) as http:
            assert (await http.get("/who")).text == seen.workers[number].id
    async with httpx.AsyncClient(transport=runtime.transport(), base_url=seen.workers[0].url or "") as http:
        assert (await http.get("/who")).status_code == 401
    lines = await runtime.logs("one", tail=10)
    assert sorted(line.worker for line in lines if line.text == "listening") == sorted(w.id for w in seen.workers)

    first = {worker.id for worker in seen.workers}
    await runtime.scale("one", 3, 2)
    seen = await runtime.wait_ready("one", 3, 60)
    assert [worker.id in first for worker in seen.workers] == [True, True, False]  # the new one is the last
    assert {worker.generation for worker in seen.workers} == {1}  # nobody was restarted
    await runtime.scale("one", 1, 3)
    seen = await runtime.wait_ready("one", 1, 60)

    await runtime.remove("one", 3)
    await runtime.remove("one", 3)
    assert await runtime.observe() == {}
    found = cluster.api.get("/api/v1/namespaces/stepway/pods")["items"]
    assert found == []
    with pytest.raises(UnknownEndpoint):
        await runtime.logs("one")


async def test_streams_come_through_the_api_server_as_they_are_sent(runtime: KubernetesRuntime) -> None:
    slow = container(environment={"BETWEEN": "0.3"})
    await runtime.apply(workload("stream", container=slow))
    seen = await runtime.wait_ready("stream", 1, 60)
    clock = asyncio.get_running_loop().time
    async with client(runtime, seen) as http, http.stream("POST", "/v1/x", content=b"hello") as answer:
        begin = clock()
        times = [clock() - begin async for part in answer.aiter_text() if part]
    assert len(times) == 3
    assert times[0] < 0.2 < times[1]
    async with client(runtime, seen) as http:
        with pytest.raises(httpx.ConnectError, match="does not reach the worker"):
            await http.get(str(http.base_url).replace(seen.workers[0].id, "nobody") + "/who")
        with pytest.raises(httpx.UnsupportedProtocol):
            await http.get("https://elsewhere.example/")


async def test_an_update_replaces_workers_one_by_one_and_never_leaves_fewer(runtime: KubernetesRuntime) -> None:
    await runtime.apply(workload("roll", replicas=2))
    before = await runtime.wait_ready("roll", 2, 60)
    answered: list[int] = []
    stop = asyncio.Event()

    async def ask() -> None:
        while not stop.is_set():
            seen = (await runtime.observe())["roll"]
            assert len(seen.ready) >= 2
            answered.append(len(seen.ready))
            await asyncio.sleep(0.05)

    asking = asyncio.create_task(ask())
    await runtime.apply(workload("roll", 2, 2, container=container(environment={"VERSION": "2"})))
    after = await runtime.wait_ready("roll", 2, 60)
    stop.set()
    await asking
    assert not {worker.id for worker in before.workers} & {
        worker.id for worker in after.ready if worker.generation == 2
    }
    assert sum(worker.generation == 2 for worker in after.ready) == 2
    assert len(answered) > 3


EXITS = "import sys; print('about to fail'); sys.exit('no weights')"
EATS = "import time; time.sleep(0.3); x = bytearray(200 * 1024 * 1024); time.sleep(60)"


@pytest.mark.parametrize(
    ("name", "changes", "code", "words"),
    [
        ("crash", {"command": ["python3", "-u", "-c", EXITS]}, "worker_exited", ["exit code 1", "about to fail"]),
        ("oom", {"command": ["python3", "-c", EATS]}, "worker_out_of_memory", ["limit of 64 MiB"]),
        ("image", {"image": "registry.invalid/no/such:1"}, "worker_pull_failed", ["registry.invalid/no/such:1"]),
        ("name", {"image": "docker.io/Not/valid:1"}, "worker_no_image", ["no valid image name"]),
        ("command", {"command": ["/no/such/program"]}, "worker_cannot_start", ["no such file"]),
        (
            "room",
            {"resources": Resources(cpu_millis=900_000, memory_bytes=64 * MIB)},
            "worker_unschedulable",
            ["The one node cannot", "too little free CPU"],
        ),
    ],
)
async def test_the_pods_own_reason_is_told(
    runtime: KubernetesRuntime,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    changes: dict[str, Any],
    code: str,
    words: list[str],
) -> None:
    _short_grace(monkeypatch)
    await runtime.apply(workload(name, container=container(**changes)))
    with pytest.raises(Permanent) as caught:
        await runtime.wait_ready(name, 1, 90)
    assert caught.value.code == code
    for word in words:
        assert word in caught.value.message
    assert KEY not in caught.value.message
    (worker,) = (await runtime.observe())[name].workers
    assert worker.state != "ready"
    assert worker.reason == code.removeprefix("worker_")


async def test_a_broken_update_leaves_the_old_workers_and_can_be_taken_back(runtime: KubernetesRuntime) -> None:
    good = workload("safe")
    await runtime.apply(good)
    before = await runtime.wait_ready("safe", 1, 60)
    await runtime.apply(workload("safe", 2, container=container(image="docker.io/Not/valid:1")))
    with pytest.raises(Permanent, match="no valid image name"):
        await runtime.wait_ready("safe", 1, 60)
    seen = (await runtime.observe())["safe"]
    assert [worker.id for worker in seen.ready] == [before.workers[0].id]
    await runtime.apply(good.model_copy(update={"generation": 3}))
    seen = await runtime.wait_ready("safe", 1, 60)
    assert [worker.id for worker in seen.ready] == [before.workers[0].id]
    assert json.loads(seen.model_dump_json())["generation"] == 3


def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults that may pass count at once."""
    of_pod = reasons.of_pod

    def impatient(pod: dict[str, Any], events: Any = ()) -> Any:
        fault = of_pod(pod, events)
        passing = fault is not None and fault.reason in ("pull_failed", "unschedulable")
        return replace(fault, grace=0.5) if fault is not None and passing else fault

    monkeypatch.setattr(reasons, "of_pod", impatient)


async def test_a_worker_that_is_ill_is_told_and_gets_no_more_requests(runtime: KubernetesRuntime) -> None:
    async with runtime.watcher() as watcher:
        watched = KubernetesRuntime(runtime.client, runtime.owner, watcher)
        await watched.apply(workload("ill"))
        seen = await watched.wait_ready("ill", 1, 60)
        async with client(runtime, seen) as http:
            await http.get("/ill")
        async with asyncio.timeout(20):
            async for told in watched.changes(every=0.5):
                one = told.get("ill")
                if one is not None and one.workers[0].reason == "unhealthy":
                    break
        assert one is not None
        assert one.ready == []
        assert one.workers[0].state == "unhealthy"
        assert "probe: HTTP probe failed with statuscode: 503" in (one.workers[0].message or "")
        await watched.remove("ill")
