"""Queries of endpoints."""

from collections.abc import Collection
from typing import Any
from uuid import UUID

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.endpoints.tables import EndpointRow
from services.app.identity.caller import Caller
from shared.errors import Problem
from shared.http.pages import Listing, Page, PageQuery, paginate

LISTING = Listing(
    id=EndpointRow.id,
    sortable={"created_at": EndpointRow.created_at, "name": EndpointRow.name},
    default="-created_at",
    search=[EndpointRow.name, EndpointRow.slug],
)
LIVE = ("pending", "deploying", "running", "updating", "degraded", "unavailable", "stopped", "deleting")


async def get(session: AsyncSession, endpoint_id: UUID, *, lock: bool = False) -> EndpointRow | None:
    statement = select(EndpointRow).where(EndpointRow.id == endpoint_id).execution_options(populate_existing=True)
    return (await session.execute(statement.with_for_update() if lock else statement)).scalar_one_or_none()


async def page(session: AsyncSession, caller: Caller, filters: dict[str, Any], query: PageQuery) -> Page[EndpointRow]:
    statement: Select[Any] = select(EndpointRow).where(caller.visible(EndpointRow.project_id))
    if not filters.get("state"):
        statement = statement.where(EndpointRow.state != "deleted")
    for name, value in filters.items():
        if value is not None:
            statement = statement.where(getattr(EndpointRow, name) == value)
    return await paginate(session, statement, LISTING, query)


async def check_name_free(session: AsyncSession, project_id: UUID, slug: str | None) -> None:
    statement = select(EndpointRow.id).where(
        EndpointRow.project_id == project_id, EndpointRow.slug == slug, EndpointRow.state.in_(LIVE)
    )
    if (await session.execute(statement)).scalar_one_or_none() is not None:
        raise Problem("name_taken", "An endpoint of this name exists already in the project.", param="endpoint_name")


async def of_cluster(
    session: AsyncSession, cluster_id: UUID, only: Collection[UUID] | None = None
) -> list[EndpointRow]:
    """Endpoints that have something on the cluster, or those of them that `only` names."""
    statement = select(EndpointRow).where(EndpointRow.cluster_id == cluster_id, EndpointRow.state.in_(LIVE))
    if only is not None:
        statement = statement.where(EndpointRow.id.in_(only))
    return list((await session.execute(statement.execution_options(populate_existing=True))).scalars())


async def ids_of_cluster(session: AsyncSession, cluster_id: UUID) -> list[UUID]:
    """All that may have something on the cluster, those that failed too."""
    statement = select(EndpointRow.id).where(EndpointRow.cluster_id == cluster_id, EndpointRow.phase != "deleted")
    return list((await session.execute(statement)).scalars())


async def published(session: AsyncSession) -> list[EndpointRow]:
    """Endpoints that the gateway knows: all that live and have been ready once."""
    statement = select(EndpointRow).where(EndpointRow.state.in_(LIVE), EndpointRow.published_at.is_not(None))
    return list((await session.execute(statement.execution_options(populate_existing=True))).scalars())
