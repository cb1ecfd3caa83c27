"""Keeps the gateway's table as the endpoints' rows say: at once when one changes, and every few seconds anyway."""

import asyncio
import contextlib
from typing import Any
from uuid import UUID

import httpx
import structlog
from pydantic import SecretStr

from services.app.clusters import onboarding
from services.app.clusters import repository as clusters
from services.app.clusters.tables import ClusterRow
from services.app.context import AppContext
from services.app.endpoints import repository
from services.app.endpoints.deploy import key_context
from services.app.endpoints.service import ENDPOINTS
from services.app.endpoints.tables import EndpointRow
from services.cluster.runtimes.kubernetes.client import KubernetesClient
from services.cluster.runtimes.kubernetes.proxy import ApiServerTransport
from services.cluster.sites.clients import Clients
from services.gateway.table import Route, RouteTable, Worker
from shared.jobs.outcomes import StepError
from shared.security.envelope import SealError
from shared.security.kubeconfig_server import ServerPolicy

LOOK_AGAIN = 2.0
UNUSABLE = "The kubeconfig of the endpoint's cluster cannot be used any more."

log = structlog.get_logger(__name__)


class Publisher:
    def __init__(self, context: AppContext, table: RouteTable, clients: Clients, addresses: ServerPolicy) -> None:
        self._context = context
        self._table = table
        self._transports = _Transports(context, clients, addresses)
        self._known: set[UUID] = set()

    async def run(self) -> None:
        while True:
            changed = self._context.hub.watch(ENDPOINTS)
            try:
                await self.refresh()
            except Exception as error:  # the database is away: the last table serves on
                log.warning("publish_failed", error=type(error).__name__)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN):
                    await changed.wait()

    async def refresh(self) -> None:
        async with self._context.database.transaction() as session:
            rows = await repository.published(session)
            wanted = {row.cluster_id for row in rows if any(_is_proxied(one) for one in _workers(row))}
            found = {one: await clusters.get(session, one) for one in wanted | self._transports.known}
        self._transports.update(found)
        for row in rows:
            self._table.replace(row.id, self._route(row))
        present = {row.id for row in rows}
        for gone in self._known - present:
            self._table.remove(gone)
        self._known = present
        self._table.is_known = True

    def _route(self, row: EndpointRow) -> Route:
        ready = [one for one in _workers(row) if one["state"] == "ready" and one.get("url") and row.phase != "deleting"]
        return Route(
            endpoint_id=row.id, project_id=row.project_id, model_name=row.name, served_name=row.name, aliases=(row.slug,),
            state=row.state, reason=row.reason or (UNUSABLE if row.cluster_id in self._transports.broken else None),
            workers=tuple(self._reached(row, ready)), generation=row.generation, created=int(row.created_at.timestamp()),
        )  # fmt: skip

    def _reached(self, row: EndpointRow, ready: list[dict[str, Any]]) -> list[Worker]:
        """Those that a way leads to."""
        key = SecretStr(self._context.keyring.open(row.sealed, key_context(row.id)).decode())
        capacity = int(row.desired.get("concurrency") or 1)
        transport = self._transports.get(row.cluster_id)
        return [
            Worker(
                id=one["id"], url=one["url"], host=one.get("host"), api_key=key, capacity=capacity,
                transport=transport if _is_proxied(one) else None,
            )
            for one in ready if transport is not None or not _is_proxied(one)
        ]  # fmt: skip


class _Transports:
    """The ways through clusters' API servers. None asks its cluster anything here: one that hangs holds up nobody.

    A cluster is `broken` when its kubeconfig cannot be used.
    """

    def __init__(self, context: AppContext, clients: Clients, addresses: ServerPolicy) -> None:
        self._context = context
        self._clients = clients
        self._addresses = addresses
        self._open: dict[UUID, tuple[KubernetesClient, ApiServerTransport]] = {}
        self.broken: set[UUID] = set()

    @property
    def known(self) -> set[UUID]:
        return {*self._open, *self.broken}

    def get(self, cluster_id: UUID) -> httpx.AsyncBaseTransport | None:
        _, transport = self._open.get(cluster_id, (None, None))
        return transport

    def update(self, found: dict[UUID, ClusterRow | None]) -> None:
        for cluster_id, cluster in found.items():
            sealed = None if cluster is None or cluster.state == "deleted" else cluster.sealed
            if sealed is None:
                self._open.pop(cluster_id, None)
                self.broken.discard(cluster_id)
                self._clients.forget(cluster_id)
            else:
                self._use(cluster_id, sealed)

    def _use(self, cluster_id: UUID, sealed: bytes) -> None:
        try:
            client = self._client(cluster_id, sealed)
        except (SealError, StepError) as error:
            if cluster_id not in self.broken:
                log.warning("cluster_not_reached", cluster_id=str(cluster_id), error=str(error)[:300])
            self._open.pop(cluster_id, None)
            self.broken.add(cluster_id)
            return
        self.broken.discard(cluster_id)
        kept, _ = self._open.get(cluster_id, (None, None))
        if kept is not client:
            self._open[cluster_id] = client, ApiServerTransport(client)

    def _client(self, cluster_id: UUID, sealed: bytes) -> KubernetesClient:
        """Asked for each time: it is another one when the kubeconfig was replaced."""
        kubeconfig = self._context.keyring.open(sealed, onboarding.key_context(cluster_id))
        return self._clients.client(cluster_id, kubeconfig, self._addresses)


def _workers(row: EndpointRow) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = row.observed.get("workers", [])
    return found


def _is_proxied(worker: dict[str, Any]) -> bool:
    return worker.get("via") == "api_server"
