"""Queries of clusters."""

from typing import Any
from uuid import UUID

from sqlalchemy import Select, delete, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.clusters.tables import ClusterAccessRow, ClusterRow
from shared.http.pages import Listing, Page, PageQuery, paginate

LISTING = Listing(
    id=ClusterRow.id,
    sortable={"created_at": ClusterRow.created_at, "name": ClusterRow.name},
    default="created_at",
    search=[ClusterRow.name],
)


async def get(
    session: AsyncSession, cluster_id: UUID, *, lock: bool = False, share: bool = False, change: bool = False
) -> ClusterRow | None:
    """Until the transaction ends, `change` lets nobody else change it, `share` nobody `lock` it, and `lock` neither.

    So what observers tell waits for no trigger that shares it, and be there hundreds.
    """
    statement = select(ClusterRow).where(ClusterRow.id == cluster_id).execution_options(populate_existing=True)
    if lock or share or change:
        statement = statement.with_for_update(read=share, key_share=not lock)
    return (await session.execute(statement)).scalar_one_or_none()


async def page(session: AsyncSession, filters: dict[str, Any], query: PageQuery) -> Page[ClusterRow]:
    statement: Select[Any] = select(ClusterRow)
    if not filters.get("state"):
        statement = statement.where(ClusterRow.state != "deleted")
    for name, value in filters.items():
        if value is not None:
            statement = statement.where(getattr(ClusterRow, name) == value)
    return await paginate(session, statement, LISTING, query)


async def id_of_live_name(session: AsyncSession, name: str) -> UUID | None:
    statement = select(ClusterRow.id).where(ClusterRow.name == name, ClusterRow.state.not_in(["deleted", "error"]))
    return (await session.execute(statement)).scalar_one_or_none()


async def of_uid(session: AsyncSession, uid: str) -> ClusterRow | None:
    statement = select(ClusterRow).where(ClusterRow.uid == uid, ClusterRow.state != "deleted")
    return (await session.execute(statement)).scalar_one_or_none()


async def candidates(session: AsyncSession) -> list[ClusterRow]:
    """Clusters that could be deployed to, and those that are down for now."""
    statement = select(ClusterRow).where(ClusterRow.state.in_(["available", "unavailable"])).order_by(ClusterRow.name)
    return list((await session.execute(statement)).scalars())


async def to_be_watched(session: AsyncSession) -> list[ClusterRow]:
    """Registered clusters, but for those that are on their way in or out."""
    statement = select(ClusterRow).where(
        ClusterRow.kind == "kubernetes",
        ClusterRow.state.in_(["available", "unavailable"]),
        ClusterRow.sealed.is_not(None),
    )
    return list((await session.execute(statement.order_by(ClusterRow.id))).scalars())


async def access_of(session: AsyncSession, job_id: UUID) -> ClusterAccessRow | None:
    """The new credentials that a job tries."""
    statement = select(ClusterAccessRow).where(ClusterAccessRow.id == job_id)
    return (await session.execute(statement.execution_options(populate_existing=True))).scalar_one_or_none()


async def forget_access(session: AsyncSession, cluster_id: UUID) -> None:
    await session.execute(delete(ClusterAccessRow).where(ClusterAccessRow.cluster_id == cluster_id))


_LIVE_JOB = text("""
    SELECT id FROM jobs.job WHERE resource_type = 'cluster' AND resource_id = :cluster AND kind = ANY(:kinds)
       AND state NOT IN ('succeeded', 'failed', 'cancelled', 'cleanup_required') ORDER BY created_at LIMIT 1""")


async def live_job(session: AsyncSession, cluster_id: UUID, *kinds: str) -> UUID | None:
    """A job of one of these kinds that works on the cluster, or will."""
    found = await session.execute(_LIVE_JOB, {"cluster": cluster_id, "kinds": list(kinds)})
    job_id: UUID | None = found.scalar_one_or_none()
    return job_id
