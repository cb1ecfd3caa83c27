"""What the app answers the observers of clusters (`shared.contracts.ports.ObserverPort`).

Each call carries the epoch of the observer's lease; one with an older epoch than the cluster has seen is refused.
`internal` has what workers may ask.
"""

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.clusters import onboarding
from services.app.clusters import repository as clusters
from services.app.clusters.service import CLUSTERS
from services.app.clusters.tables import ClusterRow
from services.app.context import AppContext
from services.app.credentials import repository as credential_rows
from services.app.credentials import service as credentials
from services.app.endpoints import events
from services.app.endpoints import repository as endpoints
from services.app.endpoints import service as endpoint_service
from services.app.endpoints.deploy import key_context, spec_of
from services.app.endpoints.tables import EndpointRow
from services.app.models.catalogue import credential_type
from services.app.models.tables import ModelRow
from shared.contracts.clusters import WatchedCluster
from shared.contracts.deployments import ExpectedEndpoint
from shared.contracts.ports import EndpointNews
from shared.errors import Problem
from shared.jobs.outcomes import Permanent

Observed = dict[str, Any]


class ObserverAccess:
    """The implementation for one process, and behind the internal routes for others."""

    def __init__(self, context: AppContext) -> None:
        self._context = context

    async def clusters(self) -> list[WatchedCluster]:
        async with self._context.database.transaction() as session:
            return [_watched(row) for row in await clusters.to_be_watched(session)]

    async def cluster_kubeconfig(self, cluster_id: UUID, epoch: int) -> bytes:
        async with self._context.database.transaction() as session:
            cluster = await _observed_by(session, cluster_id, epoch)
            if cluster.sealed is None:
                raise Permanent("cluster_gone", "The cluster is not registered any more.")
            return self._context.keyring.open(cluster.sealed, onboarding.key_context(cluster_id))

    async def observe(self, cluster_id: UUID, epoch: int, observations: list[Observed]) -> bool:
        """`observations` are of all endpoints on the cluster; an endpoint without one has nothing there."""
        seen = {one["endpoint_id"]: one for one in observations}
        return await self._take(cluster_id, epoch, seen, None)

    async def observe_some(self, cluster_id: UUID, epoch: int, seen: Mapping[str, Observed | None]) -> bool:
        return await self._take(cluster_id, epoch, {name: one or {} for name, one in seen.items()}, set(seen))

    async def reachable(self, cluster_id: UUID, epoch: int, fault: str | None) -> bool:
        async with self._context.database.transaction() as session:
            cluster = await clusters.get(session, cluster_id, change=True)
            if cluster is None or cluster.epoch > epoch:
                return False
            cluster.epoch = epoch
            if cluster.state not in ("available", "unavailable"):
                return True
            if fault is None:
                cluster.observed_at = datetime.now(UTC)
            state = "available" if fault is None else "unavailable"
            if (cluster.state, cluster.reason) != (state, fault):
                cluster.state, cluster.reason = state, fault
                cluster.revision += 1
                cluster.updated_at = datetime.now(UTC)
                self._context.hub.publish_after_commit(session, CLUSTERS)
            if fault is not None:
                await self._mark(session, cluster, f"The cluster {cluster.name} is unavailable: {fault}")
        return True

    async def _mark(self, session: AsyncSession, cluster: ClusterRow, fault: str) -> None:
        """What was last seen of the endpoints stays; the next report of one takes the mark away."""
        for endpoint in await endpoints.of_cluster(session, cluster.id):
            if endpoint.observed.get("cluster_fault") != fault:
                endpoint.observed = {**endpoint.observed, "cluster_fault": fault}
                endpoint_service.settle(endpoint)
                self._context.hub.publish_after_commit(session, endpoint_service.ENDPOINTS)

    async def inspected(self, cluster_id: UUID, epoch: int, facts: dict[str, Any]) -> bool:
        async with self._context.database.transaction() as session:
            cluster = await clusters.get(session, cluster_id, change=True)
            if cluster is None or cluster.epoch > epoch:
                return False
            cluster.epoch, cluster.facts = epoch, facts
            cluster.updated_at = datetime.now(UTC)
        return True

    async def tell(self, cluster_id: UUID, epoch: int, endpoint_id: UUID, news: EndpointNews, message: str) -> None:
        async with self._context.database.transaction() as session:
            await _observed_by(session, cluster_id, epoch)
            endpoint = await endpoints.get(session, endpoint_id)
            if endpoint is not None and endpoint.cluster_id == cluster_id:
                events.tell(endpoint, news, message)

    async def expected(
        self, cluster_id: UUID, epoch: int, endpoint_id: UUID | None = None
    ) -> list[ExpectedEndpoint] | None:
        statement = (
            select(EndpointRow, ModelRow)
            .join(ModelRow, ModelRow.id == EndpointRow.model_id)
            .where(EndpointRow.cluster_id == cluster_id, EndpointRow.phase != "deleted")
        )
        if endpoint_id is not None:
            statement = statement.where(EndpointRow.id == endpoint_id)
        async with self._context.database.transaction() as session:
            cluster = await clusters.get(session, cluster_id)
            if cluster is None or cluster.epoch > epoch:
                return None
            return [_expected(endpoint, model) for endpoint, model in await session.execute(statement)]

    async def endpoint_key(self, cluster_id: UUID, epoch: int, endpoint_id: UUID) -> str:
        async with self._context.database.transaction() as session:
            endpoint = await _endpoint(session, cluster_id, epoch, endpoint_id)
            return self._context.keyring.open(endpoint.sealed, key_context(endpoint_id)).decode()

    async def endpoint_parameters(self, cluster_id: UUID, epoch: int, endpoint_id: UUID) -> dict[str, str]:
        async with self._context.database.transaction() as session:
            endpoint = await _endpoint(session, cluster_id, epoch, endpoint_id)
            if endpoint.credential_id is None:
                return {}
            try:
                values = await credentials.reveal(session, self._context.keyring, endpoint.credential_id)
            except Problem as problem:
                raise Permanent("credential_gone", "The endpoint's credential is not there any more.") from problem
            credential = await credential_rows.get(session, endpoint.credential_id)
        kind = credential_type(credential.type) if credential is not None else None
        return kind.parameters(values) if kind is not None else {}

    async def _take(
        self, cluster_id: UUID, epoch: int, seen: Mapping[str, Observed], only: Iterable[str] | None
    ) -> bool:
        async with self._context.database.transaction() as session:
            cluster = await clusters.get(session, cluster_id, change=True)
            if cluster is None or cluster.epoch > epoch:
                return False
            cluster.epoch, cluster.observed_at = epoch, datetime.now(UTC)
            for endpoint in await endpoints.of_cluster(session, cluster_id, None if only is None else _ids(only)):
                observed = seen.get(str(endpoint.id), {})
                if _same(endpoint.observed, observed) or _is_older(observed, endpoint.observed):
                    continue
                events.tell_of_restarts(endpoint, endpoint.observed, observed)
                endpoint.observed = observed
                endpoint_service.settle(endpoint)
                self._context.hub.publish_after_commit(session, endpoint_service.ENDPOINTS)
        return True


def _watched(row: ClusterRow) -> WatchedCluster:
    inspected = row.facts.get("inspected_at")
    return WatchedCluster(
        id=row.id, uid=row.uid, ingress_url=row.ingress_url, heal=row.heal,
        access=hashlib.sha256(row.sealed or b"").hexdigest()[:16],
        inspected_at=datetime.fromisoformat(inspected) if inspected else None,
    )  # fmt: skip


async def _observed_by(session: AsyncSession, cluster_id: UUID, epoch: int) -> ClusterRow:
    cluster = await clusters.get(session, cluster_id)
    if cluster is None or cluster.state == "deleted":
        raise Permanent("cluster_gone", "The cluster is not registered any more.")
    if cluster.epoch > epoch:
        raise Permanent("stale_epoch", "Another observer looks after the cluster.")
    return cluster


async def _endpoint(session: AsyncSession, cluster_id: UUID, epoch: int, endpoint_id: UUID) -> EndpointRow:
    """One for which the cluster should have workers."""
    await _observed_by(session, cluster_id, epoch)
    endpoint = await endpoints.get(session, endpoint_id)
    if endpoint is None or endpoint.cluster_id != cluster_id or endpoint.phase == "deleted":
        raise Permanent("endpoint_gone", "The endpoint is not there any more.")
    return endpoint


def _expected(endpoint: EndpointRow, model: ModelRow) -> ExpectedEndpoint:
    """What an endpoint that serves was deployed from, at its latest generation."""
    if endpoint.phase != "serving" or not endpoint.desired:
        return ExpectedEndpoint(endpoint_id=endpoint.id)
    return ExpectedEndpoint(
        endpoint_id=endpoint.id, replicas=endpoint.desired["replicas"], spec=spec_of(endpoint, model),
        plan=endpoint.desired.get("plan") or {},
    )  # fmt: skip


def _same(before: Observed, after: Observed) -> bool:
    """Whether two observations differ in nothing but their time and the workers' memory."""
    return _essence(before) == _essence(after)


def _is_older(observed: Observed, known: Observed) -> bool:
    """Whether an observation was made before what a job has published meanwhile."""
    made, latest = observed.get("observed_at"), known.get("observed_at")
    return made is not None and latest is not None and datetime.fromisoformat(made) < datetime.fromisoformat(latest)


def _essence(observed: Observed) -> dict[str, Any]:
    workers = [{k: v for k, v in worker.items() if k != "memory_bytes"} for worker in observed.get("workers", [])]
    told = {name: observed.get(name) for name in ("reason", "message", "cluster_fault")}
    return {**told, "workers": workers}


def _ids(texts: Iterable[str]) -> list[UUID]:
    """Those that are ids of ours: what a cluster's labels say may be anything."""
    found = []
    for one in texts:
        try:
            found.append(UUID(one))
        except ValueError:
            continue
    return found
