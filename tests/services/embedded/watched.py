"""A registered cluster with an endpoint on it, the app's rows, and watches over both; for tests."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar
from uuid import UUID, uuid4

from pydantic import SecretStr
from sqlalchemy import select

from services.app.clusters import onboarding
from services.app.clusters import repository as clusters
from services.app.clusters.service import CLUSTERS
from services.app.clusters.tables import ClusterRow
from services.app.context import AppContext
from services.app.endpoints import repository as endpoints
from services.app.endpoints.deploy import key_context, spec_of
from services.app.endpoints.tables import EndpointEventRow, EndpointRow
from services.app.internal import AppAccess
from services.app.models import repository as models
from services.cluster.runtimes.kubernetes.client import KubernetesClient
from services.cluster.runtimes.kubernetes.runtime import KubernetesRuntime
from services.cluster.runtimes.kubernetes.watcher import Watcher
from services.cluster.sites.base import PodPlan
from services.cluster.sites.clients import Clients
from services.cluster.sites.kubernetes import KubernetesSite
from services.cluster.watch.healer import HealPace
from services.cluster.watch.watches import Watches
from services.cluster.watch.world import WatchPace, World
from shared.jobs.claims import Claims
from shared.security.kubeconfig import Kubeconfig
from tests.services.app import rows
from tests.services.cluster.runtimes.kubernetes.support import MIB, container
from tests.testbed.cluster import Cluster
from tests.testbed.kube import LOOPBACK

Seen = TypeVar("Seen")
PATIENCE = 60.0  # seconds; far more than anything here should take
CONFIG = {"concurrent_requests": 1, "avg_sequence_length": 64, "avg_context_length": 64}
PLAN = PodPlan(
    engine="test", replicas=1, concurrency=1, context_tokens=128, memory_bytes=64 * MIB, threads=1, apis=["/v1/completions"],
    container=container(),
)  # fmt: skip
PACE = WatchPace(ask=0.5, duties=1.0, again=5.0, heal=HealPace(first=0.5, longest=4.0))


class Watched:
    """`cluster_id` is registered with the account of deploy/cluster-access.yaml."""

    def __init__(self, context: AppContext, cluster: Cluster, project: UUID) -> None:
        self.context = context
        self.cluster = cluster
        self.project = project
        self.app = AppAccess(context)
        self.cluster_id = uuid4()
        self.clients = Clients()
        self.watchers: dict[UUID, Watcher] = {}  # of the process whose watches were made last

    async def register(self, kubeconfig: Kubeconfig, **values: Any) -> None:
        uid = self.cluster.api.get("/api/v1/namespaces/kube-system")["metadata"]["uid"]
        sealed = self.seal(kubeconfig)
        await rows.insert(self.context.database, rows.cluster(id=self.cluster_id, uid=uid, sealed=sealed, **values))

    def seal(self, kubeconfig: Kubeconfig) -> bytes:
        return self.context.keyring.seal(kubeconfig.canonical(), onboarding.key_context(self.cluster_id))

    async def endpoint(self, **values: Any) -> UUID:
        """A row that serves, and its pods: as the job of a deploy leaves them."""
        model, endpoint_id = rows.model(modality=["llm"], provider_type="cloud_model", uri="test/model"), uuid4()
        desired = {"replicas": 1, "plan": PLAN.model_dump(mode="json"), "generation": 1}
        key = self.context.keyring.seal(b"worker-key", key_context(endpoint_id))
        given = {
            "id": endpoint_id,
            "deploy_config": CONFIG,
            "desired": desired,
            "sealed": key,
            "state": "unavailable",
            **values,
        }
        row = rows.endpoint(self.project, model.id, self.cluster_id, **given)
        await rows.insert(self.context.database, model, row)
        async with self.runtime() as runtime:
            site = KubernetesSite(runtime, self.context.settings, self.context.objects)
            async with self.context.database.transaction() as session:
                found = await models.get(session, model.id)
                assert found is not None
                spec = spec_of(row, found)
            await runtime.apply(await site.workload(spec, PLAN, key="worker-key", secrets={"x": SecretStr("y")}))
        return endpoint_id

    @contextlib.asynccontextmanager
    async def runtime(self) -> AsyncIterator[KubernetesRuntime]:
        async with KubernetesClient(
            self.cluster.api.kubeconfig(token=self.cluster.api.token()), addresses=LOOPBACK
        ) as one:
            yield KubernetesRuntime(one, str(self.cluster_id))

    # --- watching

    def watches(self, claims: Claims) -> Watches:
        self.watchers = {}
        world = World(
            self.app, self.clients, LOOPBACK, self.context.objects, self.context.settings, PACE, self.watchers
        )
        return Watches(world, claims.hold, lambda: self.context.hub.watch(CLUSTERS))

    async def claims(self) -> Claims:
        """Those of a process of its own, that lives until it leaves."""
        claims = Claims(self.context.database, self.context.ledger, uuid4(), lease_seconds=600)
        await claims.register({})
        return claims

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[Watches]:
        watches = self.watches(await self.claims())
        async with running(watches):
            yield watches

    # --- what the app shows

    async def row(self) -> ClusterRow:
        async with self.context.database.transaction() as session:
            row = await clusters.get(session, self.cluster_id)
        assert row is not None
        return row

    async def shown(self, endpoint_id: UUID) -> EndpointRow:
        async with self.context.database.transaction() as session:
            row = await endpoints.get(session, endpoint_id)
        assert row is not None
        return row

    async def events(self, endpoint_id: UUID) -> list[EndpointEventRow]:
        """The oldest first."""
        statement = select(EndpointEventRow).where(EndpointEventRow.endpoint_id == endpoint_id)
        async with self.context.database.transaction() as session:
            return list((await session.execute(statement.order_by(EndpointEventRow.id))).scalars())

    async def until_cluster(self, state: str, words: str = "") -> ClusterRow:
        return await until(self.row, lambda row: row.state == state and words in (row.reason or ""))

    async def until_endpoint(self, endpoint_id: UUID, state: str, words: str = "") -> EndpointRow:
        return await until(
            lambda: self.shown(endpoint_id), lambda row: row.state == state and words in (row.reason or "")
        )

    async def until_told(self, endpoint_id: UUID, kind: str, count: int = 1) -> list[EndpointEventRow]:
        async def told() -> list[EndpointEventRow]:
            return [one for one in await self.events(endpoint_id) if one.type == kind]

        return await until(told, lambda found: len(found) >= count)


@contextlib.asynccontextmanager
async def running(watches: Watches) -> AsyncIterator[None]:
    task = asyncio.create_task(watches.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(look: Callable[[], Awaitable[Seen]], holds: Callable[[Seen], object]) -> Seen:
    """What is seen once it is so."""
    async with asyncio.timeout(PATIENCE):
        while True:
            seen = await look()
            if holds(seen):
                return seen
            await asyncio.sleep(0.1)
