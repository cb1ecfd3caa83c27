"""Looks that are shared: by those who ask together, for a while, and never a failure."""

import asyncio

from services.cluster.runtimes.kubernetes import inspect
from services.cluster.runtimes.kubernetes.recent import Recent
from shared.jobs.outcomes import Retry
from tests.services.cluster.runtimes.kubernetes.support import connected
from tests.testbed.kube import ApiServer

AWAY = Retry("cluster_unavailable", "It is away.")


class Looks:
    def __init__(self, *failing: int) -> None:
        self.count = 0
        self._failing = failing

    async def __call__(self) -> int:
        self.count += 1
        number = self.count
        await asyncio.sleep(0.01)
        if number in self._failing:
            raise AWAY
        return number


async def test_who_asks_together_shares_one_look() -> None:
    looks, recent = Looks(), Recent[int](3600)
    assert await asyncio.gather(*(recent.get(looks) for _ in range(5))) == [1] * 5
    assert await recent.get(looks) == 1


async def test_an_old_look_is_not_used() -> None:
    looks, recent = Looks(), Recent[int](0)
    assert [await recent.get(looks) for _ in range(3)] == [1, 2, 3]


async def test_a_look_that_fails_is_its_callers_alone() -> None:
    looks, recent = Looks(1), Recent[int](3600)
    found = await asyncio.gather(*(recent.get(looks) for _ in range(3)), return_exceptions=True)
    assert found == [AWAY, 2, 2]


async def test_a_plan_may_use_nodes_of_a_moment_ago_and_an_inspection_does_not(api_server: ApiServer) -> None:
    async with connected(api_server) as runtime:
        runtime.client.recent_nodes = Recent(3600)
        before = (await runtime.inspection()).nodes
        api_server.add_node("came-later", status={})
        try:
            assert (await runtime.inspection()).nodes == before
            fresh = await inspect.inspect(runtime.client, await runtime.client.version())
            assert "came-later" in [node.name for node in fresh.nodes]
        finally:
            api_server.admin.delete("/api/v1/nodes/came-later").raise_for_status()
