"""Keeps a gateway's table as the app publishes it: at once when an endpoint changes, and every few seconds anyway."""

import asyncio
from typing import Protocol
from uuid import UUID

import httpx
import structlog
from pydantic import SecretStr

from services.cluster.runtimes.kubernetes.client import KubernetesClient
from services.cluster.runtimes.kubernetes.proxy import ApiServerTransport
from services.cluster.sites.clients import Clients
from services.gateway.table import Route, RouteTable, Worker
from shared.contracts.gateway import PublishedCluster, PublishedRoute, PublishedTable
from shared.jobs.outcomes import StepError
from shared.security.kubeconfig_server import ServerPolicy

AGAIN_AFTER = 1.0  # seconds, when the app did not answer
UNUSABLE = "The kubeconfig of the endpoint's cluster cannot be used any more."

log = structlog.get_logger(__name__)


class Source(Protocol):
    async def routes(self, seen: str | None) -> PublishedTable: ...


class Publisher:
    def __init__(self, source: Source, table: RouteTable, clients: Clients, addresses: ServerPolicy) -> None:
        self._source = source
        self._table = table
        self._transports = _Transports(clients, addresses)
        self._known: set[UUID] = set()
        self._seen: str | None = None
        self._asked = 0  # questions so far
        self._applied = 0  # the latest question whose answer counts
        self._refreshing: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        self.published = asyncio.Event()  # once: the table is known

    async def run(self) -> None:
        while True:
            try:
                await self._ask(self._seen)
            except Exception as error:  # the app or its database is away: the last table serves on
                log.warning("publish_failed", error=f"{type(error).__name__}: {error}"[:300])
                await asyncio.sleep(AGAIN_AFTER)

    async def refresh(self) -> None:
        """The table as it is now, without waiting for a change. Those who want it at the same time share one answer, whose
        question was put after all of theirs. Raises what the source raises.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._refresh_after(self._refreshing))
            self._next.add_done_callback(_looked_at)
        await asyncio.shield(self._next)  # one that leaves must not take the answer from the others

    async def _refresh_after(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        self._refreshing, self._next = self._next, None  # from here on, it may be too early for who wants it
        await self._ask(None)

    async def _ask(self, seen: str | None) -> None:
        """An answer to an older question than that of the table is passed over: it may be older. The next one tells."""
        self._asked += 1
        number = self._asked
        published = await self._source.routes(seen)
        if number > self._applied:
            self._applied = number
            self._apply(published)

    def _apply(self, published: PublishedTable) -> None:
        if published.changed:
            self._transports.update(published.clusters)
            for one in published.routes:
                self._table.replace(one.endpoint_id, self._route(one))
            present = {one.endpoint_id for one in published.routes}
            for gone in self._known - present:
                self._table.remove(gone)
            self._known = present
            self._table.is_known = True
        self._seen = published.version
        self.published.set()

    def _route(self, one: PublishedRoute) -> Route:
        return Route(
            endpoint_id=one.endpoint_id, project_id=one.project_id, model_name=one.name, served_name=one.name,
            aliases=(one.slug,), adapters=tuple(one.adapters), state=one.state, generation=one.generation, created=one.created,
            reason=one.reason or (UNUSABLE if one.cluster_id in self._transports.broken else None),
            workers=tuple(self._reached(one)),
        )  # fmt: skip

    def _reached(self, one: PublishedRoute) -> list[Worker]:
        """Those that a way leads to."""
        transport = self._transports.get(one.cluster_id)
        return [
            Worker(
                id=worker.id, url=worker.url, host=worker.host, api_key=SecretStr(one.key), capacity=one.capacity,
                transport=transport if worker.proxied else None,
            )
            for worker in one.workers if transport is not None or not worker.proxied
        ]  # fmt: skip


def _looked_at(done: asyncio.Task[None]) -> None:
    """Its fault is theirs who wait for it; there may be nobody any more."""
    if not done.cancelled():
        done.exception()


class _Transports:
    """The ways through clusters' API servers. None asks its cluster anything here: one that hangs holds up nobody.

    A cluster is `broken` when its kubeconfig cannot be used.
    """

    def __init__(self, clients: Clients, addresses: ServerPolicy) -> None:
        self._clients = clients
        self._addresses = addresses
        self._open: dict[UUID, tuple[KubernetesClient, ApiServerTransport]] = {}
        self.broken: set[UUID] = set()

    def get(self, cluster_id: UUID) -> httpx.AsyncBaseTransport | None:
        _, transport = self._open.get(cluster_id, (None, None))
        return transport

    def update(self, published: list[PublishedCluster]) -> None:
        for unused in self._open.keys() - {one.id for one in published}:
            del self._open[unused]
        self.broken &= {one.id for one in published}
        for one in published:
            if one.kubeconfig is None:
                self._open.pop(one.id, None)
                self.broken.discard(one.id)
                self._clients.forget(one.id)
            else:
                self._use(one, one.kubeconfig)

    def _use(self, one: PublishedCluster, kubeconfig: bytes) -> None:
        """Asked for each time: it is another client when the kubeconfig was replaced."""
        try:
            client = self._clients.client(one.id, kubeconfig, self._addresses)
        except StepError as error:
            if one.id not in self.broken:
                log.warning("cluster_not_reached", cluster_id=str(one.id), error=str(error)[:300])
            self._open.pop(one.id, None)
            self.broken.add(one.id)
            return
        self.broken.discard(one.id)
        kept, _ = self._open.get(one.id, (None, None))
        if kept is not client:
            self._open[one.id] = client, ApiServerTransport(client)
