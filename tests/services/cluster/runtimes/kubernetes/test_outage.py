"""The API server of a real cluster goes for a while, and returns."""

import asyncio
from collections.abc import Callable, Iterator

import pytest

from services.cluster.runtimes.kubernetes.runtime import KubernetesRuntime
from services.cluster.runtimes.kubernetes.watcher import Pace
from tests.services.cluster.runtimes.kubernetes.support import SERVER, connected, container, workload
from tests.testbed.cluster import Cluster
from tests.testbed.machine import need


@pytest.fixture(scope="module")
def own() -> Iterator[Cluster]:
    need("kube", "coredns", pods=True, images=("python",))
    with Cluster() as cluster:
        cluster.api.apply_access()
        cluster.load("python")
        yield cluster


async def test_an_api_server_that_goes_and_returns_fails_nobody_who_waits(own: Cluster) -> None:
    late = container().probes.model_copy(update={"start_seconds": 120})
    slow = container("import time\ntime.sleep(6)\n" + SERVER, probes=late)
    async with connected(own.api) as runtime, runtime.watcher(Pace(ask=0.5)) as watcher:
        await watcher.synced.wait()
        watched = KubernetesRuntime(runtime.client, runtime.owner, watcher)
        await watched.apply(workload("outage", container=slow))
        waiting = asyncio.create_task(watched.wait_ready("outage", 1, 90))
        await asyncio.sleep(1)
        own.space.kill("kube-apiserver")
        await _until(lambda: watcher.fault is not None)
        await asyncio.sleep(6)
        assert not waiting.done()
        assert (await watched.observe())["outage"].replicas == 1  # what was last known
        await asyncio.to_thread(own.space.restart, "kube-apiserver")
        assert len((await waiting).ready) == 1
        await _until(lambda: watcher.fault is None)
        await watched.remove("outage")
        assert await watched.orphans(known=()) == []


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.05)
