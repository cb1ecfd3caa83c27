"""Clusters: what they look like, and what may be changed of them without asking the cluster. `upkeep` has the rest."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.app.audit import service as audit
from services.app.clusters import repository
from services.app.clusters.tables import ClusterRow
from services.app.context import AppContext
from services.app.identity.caller import Caller
from services.app.resources import Revisions, check_revision, save
from shared.clock import iso
from shared.errors import Problem

CLUSTERS = "clusters"  # the hub's name for "a cluster has been registered, changed or deleted"


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
        "heal": cluster.heal,
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
    context: AppContext,
    session: AsyncSession,
    caller: Caller,
    cluster_id: UUID,
    given: dict[str, Any],
    expected: Revisions | None,
) -> ClusterRow:
    """Change name, icon, ingress_url, or whether what others change is put right."""
    caller.require("operator")
    caller.require_unbound()
    cluster = await existing(session, cluster_id, lock=True)
    check_revision(cluster, expected)
    for name, value in given.items():
        setattr(cluster, name, value)
    cluster.revision += 1
    cluster.updated_at = datetime.now(UTC)
    await save(session)
    context.hub.publish_after_commit(session, CLUSTERS)
    await audit.record(session, caller, "cluster.change", "cluster", cluster_id, fields=sorted(given))
    return cluster


async def forget(session: AsyncSession, cluster: ClusterRow, reason: str | None) -> None:
    """It is registered no more, and all its secrets are gone."""
    cluster.state, cluster.reason, cluster.deleted_at = "deleted", reason, datetime.now(UTC)
    cluster.sealed, cluster.access = None, {}
    cluster.revision += 1
    await repository.forget_access(session, cluster.id)
    await session.flush()
