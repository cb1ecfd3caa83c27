"""Clusters: what they look like, deletion, and which fit a deployment."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.app.audit import service as audit
from services.app.clusters import repository
from services.app.clusters.tables import ClusterRow
from services.app.endpoints import repository as endpoints
from services.app.identity.caller import Caller
from services.app.resources import Revisions, check_revision
from shared.clock import iso
from shared.errors import Problem


def view(cluster: ClusterRow) -> dict[str, Any]:
    """A cluster on the wire; of its kubeconfig only what is no secret."""
    return {
        "object": "cluster",
        "id": str(cluster.id),
        "name": cluster.name,
        "kind": cluster.kind,
        "icon": cluster.icon,
        "ingress_url": cluster.ingress_url,
        "uid": cluster.uid,
        "state": cluster.state,
        "reason": cluster.reason,
        "facts": cluster.facts,
        "access": cluster.access,
        "observed_at": iso(cluster.observed_at),
        "created_by": str(cluster.created_by) if cluster.created_by else None,
        "created_at": iso(cluster.created_at),
        "updated_at": iso(cluster.updated_at),
        "revision": cluster.revision,
    }


async def existing(session: AsyncSession, cluster_id: UUID, *, lock: bool = False) -> ClusterRow:
    cluster = await repository.get(session, cluster_id, lock=lock)
    if cluster is None or cluster.state == "deleted":
        raise Problem("not_found", "There is no such cluster.")
    return cluster


async def change(
    session: AsyncSession, caller: Caller, cluster_id: UUID, given: dict[str, Any], expected: Revisions | None
) -> ClusterRow:
    """Change name, icon or ingress_url."""
    caller.require("operator")
    caller.require_unbound()
    cluster = await existing(session, cluster_id, lock=True)
    check_revision(cluster, expected)
    for name, value in given.items():
        setattr(cluster, name, value)
    cluster.revision += 1
    cluster.updated_at = datetime.now(UTC)
    await session.flush()
    await audit.record(session, caller, "cluster.change", "cluster", cluster_id, fields=sorted(given))
    return cluster


async def delete(session: AsyncSession, caller: Caller, cluster_id: UUID, expected: Revisions | None = None) -> None:
    """Forget a cluster that has no endpoints. Nothing of ours is left on it then: each endpoint's delete removed it."""
    caller.require("operator")
    caller.require_unbound()
    cluster = await existing(session, cluster_id, lock=True)
    check_revision(cluster, expected)
    if cluster.kind == "local":
        raise Problem("cluster_is_local", "This machine cannot be deleted.")
    if cluster.state == "registering":
        raise Problem("conflict", "The cluster is being registered; cancel its job first.")
    serving = await endpoints.of_cluster(session, cluster_id)
    if serving:
        names = ", ".join(endpoint.name for endpoint in serving[:5])
        raise Problem("in_use", f"Endpoints still run on this cluster: {names}.")
    cluster.state, cluster.deleted_at, cluster.sealed, cluster.access = "deleted", datetime.now(UTC), None, {}
    cluster.revision += 1
    await audit.record(session, caller, "cluster.delete", "cluster", cluster_id, name=cluster.name)
