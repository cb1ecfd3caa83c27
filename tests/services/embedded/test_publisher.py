"""The gateway's table follows the endpoints' rows, and their clusters' kubeconfigs."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from structlog.testing import capture_logs

from services.app.clusters.tables import ClusterRow
from services.app.context import AppContext
from services.app.endpoints.published import Published
from services.app.endpoints.tables import EndpointRow
from services.assembly.publisher import Publisher
from services.cluster.sites.clients import Clients
from services.gateway.table import Route, RouteTable, Worker
from shared.clock import now
from shared.security.kubeconfig_server import ServerPolicy
from tests.services.app import rows
from tests.services.app.conftest import People
from tests.testbed.certificates import as_yaml, kubeconfig
from tests.testbed.tls_server import silent

LOOPBACK = ServerPolicy(allow_loopback=True)
WORKER_KEY = "worker-key-5d21"
POD = "/api/v1/namespaces/stepway/pods/p-1:8080/proxy"


def kubeconfig_of(url: str, token: str = "cluster-token") -> bytes:
    return as_yaml(kubeconfig(cluster={"server": url}, user={"token": token}))


@dataclass
class Platform:
    """Rows of endpoints and clusters, and the publisher that reads them."""

    context: AppContext
    project: UUID
    table: RouteTable = field(default_factory=RouteTable)
    clients: Clients = field(default_factory=Clients)

    def __post_init__(self) -> None:
        self.publisher = Publisher(Published(self.context), self.table, self.clients, LOOPBACK)

    def sealed(self, cluster_id: UUID, content: bytes) -> bytes:
        return self.context.keyring.seal(content, f"cluster:{cluster_id}")

    async def cluster(self, url: str) -> UUID:
        cluster_id = uuid4()
        sealed = self.sealed(cluster_id, kubeconfig_of(url))
        await rows.insert(self.context.database, rows.cluster(id=cluster_id, sealed=sealed))
        return cluster_id

    async def endpoint(self, cluster_id: UUID, *workers: dict[str, Any], **values: Any) -> UUID:
        endpoint_id, model = uuid4(), rows.model()
        sealed = self.context.keyring.seal(WORKER_KEY.encode(), f"endpoint:{endpoint_id}")
        given = {"desired": {"concurrency": 3}, "published_at": now(), "generation": 1, **values}
        row = rows.endpoint(
            self.project, model.id, cluster_id, id=endpoint_id, observed={"workers": workers}, sealed=sealed, **given
        )
        await rows.insert(self.context.database, model, row)
        return endpoint_id

    async def change(self, kind: type[ClusterRow] | type[EndpointRow], row_id: UUID, **values: Any) -> None:
        async with self.context.database.transaction() as session:
            row = await session.get(kind, row_id)
            for name, value in values.items():
                setattr(row, name, value)

    async def route(self, endpoint_id: UUID) -> Route:
        await self.publisher.refresh()
        found = self.table.get(endpoint_id)
        assert found is not None
        return found

    async def worker(self, endpoint_id: UUID) -> Worker:
        (worker,) = (await self.route(endpoint_id)).workers
        return worker


@pytest.fixture
async def platform(app_context: AppContext, people: People) -> AsyncIterator[Platform]:
    made = Platform(app_context, await people.project("p"))
    yield made
    await made.clients.aclose()


def worker(**values: Any) -> dict[str, Any]:
    return {"id": "w-0", "state": "ready", "url": "http://127.0.0.1:9", **values}


def pod(url: str, **values: Any) -> dict[str, Any]:
    return worker(id="p-1", url=f"{url}{POD}", via="api_server", **values)


async def test_workers_are_reached_as_their_runtime_says(platform: Platform) -> None:
    machine = uuid4()
    await rows.insert(platform.context.database, rows.cluster(id=machine, kind="local"))
    async with silent() as server:
        cluster = await platform.cluster(server.url)
        local = await platform.worker(await platform.endpoint(machine, worker()))
        ingress = await platform.worker(
            await platform.endpoint(cluster, worker(url="https://in.example", via="ingress", host="smol.example"))
        )
        proxied = await platform.worker(await platform.endpoint(cluster, pod(server.url)))
        again = await platform.worker(await platform.endpoint(cluster, pod(server.url)))
    assert (local.url, local.host, local.transport) == ("http://127.0.0.1:9", None, None)
    assert (ingress.url, ingress.host, ingress.transport) == ("https://in.example", "smol.example", None)
    assert (proxied.url, proxied.host) == (f"{server.url}{POD}", None)
    assert isinstance(proxied.transport, httpx.AsyncBaseTransport)
    assert proxied.transport is again.transport
    for one in (local, ingress, proxied):
        assert one.api_key is not None
        assert (one.api_key.get_secret_value(), one.capacity) == (WORKER_KEY, 3)


async def test_adapters_are_published_with_their_endpoint(platform: Platform) -> None:
    cluster = await platform.cluster("https://127.0.0.1:1")
    plain = await platform.route(await platform.endpoint(cluster))
    tuned = await platform.route(await platform.endpoint(cluster, tuning={"lora": {"sql": "a", "chat": "b"}}))
    assert (plain.adapters, tuned.adapters) == ((), ("chat", "sql"))


async def test_only_ready_workers_are_published(platform: Platform) -> None:
    cluster = await platform.cluster("https://127.0.0.1:1")
    workers = [pod("https://127.0.0.1:1", state=state) for state in ("starting", "unhealthy", "crash_loop")]
    endpoint = await platform.endpoint(cluster, *workers, pod("https://127.0.0.1:1"), worker(url=None))
    assert len((await platform.route(endpoint)).workers) == 1
    await platform.change(EndpointRow, endpoint, phase="deleting", generation=2)
    assert (await platform.route(endpoint)).workers == ()
    await platform.change(EndpointRow, endpoint, state="deleted")
    await platform.publisher.refresh()
    assert platform.table.get(endpoint) is None


async def test_the_way_changes_with_the_kubeconfig_and_with_nothing_else(platform: Platform) -> None:
    cluster = await platform.cluster("https://127.0.0.1:1")
    endpoint = await platform.endpoint(cluster, pod("https://127.0.0.1:1"))
    first = (await platform.worker(endpoint)).transport
    assert (await platform.worker(endpoint)).transport is first
    same = platform.sealed(cluster, kubeconfig_of("https://127.0.0.1:1"))
    await platform.change(ClusterRow, cluster, sealed=same)  # as after a rotation of the encryption key
    assert (await platform.worker(endpoint)).transport is first
    other = platform.sealed(cluster, kubeconfig_of("https://127.0.0.1:1", "another-token"))
    await platform.change(ClusterRow, cluster, sealed=other)
    second = (await platform.worker(endpoint)).transport
    assert second is not None
    assert second is not first


async def test_a_cluster_that_was_deleted_leads_nowhere(platform: Platform) -> None:
    cluster = await platform.cluster("https://127.0.0.1:1")
    endpoint = await platform.endpoint(cluster, pod("https://127.0.0.1:1"))
    kept = await platform.worker(endpoint)
    await platform.change(ClusterRow, cluster, state="deleted", sealed=None)
    assert (await platform.route(endpoint)).workers == ()
    again = platform.sealed(cluster, kubeconfig_of("https://127.0.0.1:1"))
    await platform.change(ClusterRow, cluster, state="available", sealed=again)
    assert (await platform.worker(endpoint)).transport is not kept.transport  # the former connection was given up


async def test_a_kubeconfig_that_cannot_be_used_keeps_no_other_endpoint_from_its_workers(platform: Platform) -> None:
    good, bad = [await platform.cluster("https://127.0.0.1:1") for _ in range(2)]
    served = await platform.endpoint(good, pod("https://127.0.0.1:1"))
    broken = await platform.endpoint(bad, pod("https://127.0.0.1:1"))
    for content in (platform.sealed(bad, b"not a kubeconfig: secret-4711"), b"not sealed"):
        await platform.change(ClusterRow, bad, sealed=content)
        with capture_logs() as logs:
            assert len((await platform.route(served)).workers) == 1
            route = await platform.route(broken)
        assert route.workers == ()
        assert route.reason == "The kubeconfig of the endpoint's cluster cannot be used any more."
        assert "4711" not in str(logs)
    mended = platform.sealed(bad, kubeconfig_of("https://127.0.0.1:1"))
    await platform.change(ClusterRow, bad, sealed=mended)
    assert (await platform.route(broken)).reason is None
    assert (await platform.worker(broken)).transport is not None


async def test_a_broken_kubeconfig_is_logged_once(platform: Platform) -> None:
    cluster = await platform.cluster("https://127.0.0.1:1")
    await platform.change(ClusterRow, cluster, sealed=b"not sealed")
    await platform.endpoint(cluster, pod("https://127.0.0.1:1"))
    with capture_logs() as logs:
        for _ in range(3):
            await platform.publisher.refresh()
    assert [line["event"] for line in logs] == ["cluster_not_reached"]


async def test_a_cluster_that_hangs_is_not_asked(platform: Platform) -> None:
    """While requests wait for it, the table is refreshed."""
    async with silent() as server:
        endpoint = await platform.endpoint(await platform.cluster(server.url), pod(server.url))
        asked = await platform.worker(endpoint)
        assert asked.transport is not None
        timeout = {"timeout": {"connect": 60.0}}
        request = httpx.Request("POST", f"{asked.url}/v1/completions", content=b"{}", extensions=timeout)
        hung = asyncio.create_task(asked.transport.handle_async_request(request))
        await asyncio.sleep(0)
        await platform.change(EndpointRow, endpoint, state="degraded")
        assert (await platform.route(endpoint)).state == "degraded"
        assert not hung.done()
        hung.cancel()
        await asyncio.gather(hung, return_exceptions=True)
