"""Queries of clusters."""

from typing import Any
from uuid import UUID

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.clusters.tables import ClusterRow
from shared.http.pages import Listing, Page, PageQuery, paginate

LISTING = Listing(
    id=ClusterRow.id,
    sortable={"created_at": ClusterRow.created_at, "name": ClusterRow.name},
    default="created_at",
    search=[ClusterRow.name],
)


async def get(session: AsyncSession, cluster_id: UUID, *, lock: bool = False) -> ClusterRow | None:
    statement = select(ClusterRow).where(ClusterRow.id == cluster_id).execution_options(populate_existing=True)
    return (await session.execute(statement.with_for_update() if lock else statement)).scalar_one_or_none()


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
