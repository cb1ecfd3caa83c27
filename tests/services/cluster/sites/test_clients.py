"""One connection per cluster, for as long as its kubeconfig is the same."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from services.cluster.runtimes.kubernetes.client import Limits
from services.cluster.sites.clients import Clients
from shared.jobs.outcomes import Permanent
from shared.security.kubeconfig_server import ServerPolicy
from tests.testbed.kube import LOOPBACK, ApiServer

ONE, OTHER = UUID(int=1), UUID(int=2)


@pytest.fixture
async def clients() -> AsyncIterator[Clients]:
    made = Clients(Limits(connections=4), idle=0.05)
    yield made
    await made.aclose()


async def test_a_cluster_has_one_client(clients: Clients, api_server: ApiServer) -> None:
    file = api_server.access_kubeconfig()
    client = clients.client(ONE, file, LOOPBACK)
    assert clients.client(ONE, file, LOOPBACK) is client
    assert clients.client(OTHER, file, LOOPBACK) is not client
    assert (await client.version()).major == 1
    assert not client.busy


async def test_new_credentials_take_over_and_what_runs_goes_on(clients: Clients, api_server: ApiServer) -> None:
    old = clients.client(ONE, api_server.access_kubeconfig(), LOOPBACK)
    watch = await old.open("GET", "/api/v1/nodes", query=[("watch", "true")])
    assert old.busy
    new = clients.client(ONE, api_server.access_kubeconfig(), LOOPBACK)  # another token
    assert new is not old
    await asyncio.sleep(0.3)  # several times as long as an idle one is kept
    assert (await old.version()).major == 1
    watch.response.close()
    pool = old.api.rest_client.pool_manager
    assert pool is not None
    async with asyncio.timeout(10):
        while not pool.closed:
            await asyncio.sleep(0.02)
    assert (await new.version()).major == 1


async def test_an_address_that_is_not_allowed_any_more_is_refused(clients: Clients, api_server: ApiServer) -> None:
    file = api_server.access_kubeconfig()
    clients.client(ONE, file, LOOPBACK)
    with pytest.raises(Permanent) as refusal:
        clients.client(ONE, file, ServerPolicy())
    assert "loopback" in refusal.value.code
