"""What gateways are told of endpoints: all routes, as the rows say them, with what opens the way to the workers."""

import asyncio
import contextlib
import hashlib
from typing import Any
from uuid import UUID

from services.app.clusters import onboarding
from services.app.clusters import repository as clusters
from services.app.clusters.tables import ClusterRow
from services.app.context import AppContext
from services.app.endpoints import repository
from services.app.endpoints.deploy import key_context
from services.app.endpoints.service import ENDPOINTS
from services.app.endpoints.tables import EndpointRow
from shared.contracts.gateway import PublishedCluster, PublishedRoute, PublishedTable, PublishedWorker
from shared.security.envelope import SealError

LOOK_AGAIN = 2.0  # seconds that a gateway waits at most before the rows are looked at again


class Published:
    """Implements `routes` of `GatewayPort`."""

    def __init__(self, context: AppContext) -> None:
        self._context = context

    async def routes(self, seen: str | None) -> PublishedTable:
        """The table; one that is `seen` is waited with for a moment, for it may change."""
        changed = self._context.hub.watch(ENDPOINTS)
        table = await self.table(seen)
        if table.changed:
            return table
        try:
            async with asyncio.timeout(LOOK_AGAIN):
                await changed.wait()
        except TimeoutError:
            return table  # whoever asks again looks again
        return await self.table(seen)

    async def table(self, seen: str | None = None) -> PublishedTable:
        async with self._context.database.transaction() as session:
            rows = await repository.published(session)
            wanted = {row.cluster_id for row in rows if any(_is_proxied(one) for one in _workers(row))}
            found = {one: await clusters.get(session, one) for one in wanted}
        table = PublishedTable(
            version="", changed=True, routes=[self._route(row) for row in rows],
            clusters=[self._cluster(one, row) for one, row in found.items()],
        )  # fmt: skip
        table.version = hashlib.sha256(table.model_dump_json().encode()).hexdigest()
        return PublishedTable(version=table.version, changed=False) if table.version == seen else table

    def _route(self, row: EndpointRow) -> PublishedRoute:
        ready = [one for one in _workers(row) if one["state"] == "ready" and one.get("url") and row.phase != "deleting"]
        return PublishedRoute(
            endpoint_id=row.id, project_id=row.project_id, cluster_id=row.cluster_id, name=row.name, slug=row.slug,
            adapters=sorted(row.tuning.get("lora", ())), state=row.state, reason=row.reason,
            generation=row.generation, created=int(row.created_at.timestamp()),
            key=self._context.keyring.open(row.sealed, key_context(row.id)).decode(),
            capacity=int(row.desired.get("concurrency") or 1),
            workers=[
                PublishedWorker(id=one["id"], url=one["url"], host=one.get("host"), proxied=_is_proxied(one))
                for one in ready
            ],
        )  # fmt: skip

    def _cluster(self, cluster_id: UUID, row: ClusterRow | None) -> PublishedCluster:
        if row is None or row.state == "deleted" or row.sealed is None:
            return PublishedCluster(id=cluster_id)
        with contextlib.suppress(SealError):
            content = self._context.keyring.open(row.sealed, onboarding.key_context(cluster_id))
            return PublishedCluster(id=cluster_id, kubeconfig=content)
        return PublishedCluster(id=cluster_id, kubeconfig=b"")


async def project_of(context: AppContext, endpoint_id: UUID) -> UUID | None:
    """The project of an endpoint, served or not; None when there is no such endpoint, or not any more."""
    async with context.database.transaction() as session:
        endpoint = await repository.get(session, endpoint_id)
    return endpoint.project_id if endpoint is not None and endpoint.phase != "deleted" else None


def _workers(row: EndpointRow) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = row.observed.get("workers", [])
    return found


def _is_proxied(worker: dict[str, Any]) -> bool:
    return worker.get("via") == "api_server"
