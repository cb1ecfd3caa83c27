"""Queries of flows and their versions. Those of executions are in `history`."""

from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.flows import slugs
from services.app.flows.tables import LIVE, ExecutionRow, FlowRow, VersionRow
from services.app.identity.caller import Caller
from services.app.projects.tables import ProjectRow
from shared.http.pages import Listing, Page, PageQuery, paginate

FLOWS = Listing(
    id=FlowRow.id,
    sortable={"created_at": FlowRow.created_at, "name": FlowRow.name, "updated_at": FlowRow.updated_at},
    default="-created_at",
    search=[FlowRow.name, FlowRow.description, FlowRow.slug],
)
VERSIONS = Listing(id=VersionRow.number, sortable={"number": VersionRow.number}, default="-number")

_PURGE = text("""
    DELETE FROM flow.flow f WHERE f.deleted_at < clock_timestamp() - make_interval(days => :days)
       AND NOT EXISTS (SELECT 1 FROM flow.execution e WHERE e.flow_id = f.id)""")


async def add(session: AsyncSession, values: dict[str, Any]) -> FlowRow:
    """A new flow under a short id that nothing else has."""
    while True:
        statement = (
            insert(FlowRow).values(slug=slugs.new("wf"), **values).on_conflict_do_nothing(index_elements=["slug"])
        )
        made = (await session.execute(statement.returning(FlowRow))).scalar_one_or_none()
        if made is not None:
            return made


async def get(session: AsyncSession, name: str | UUID, *, lock: bool = False) -> FlowRow | None:
    """By its short id or its UUID; deleted ones too."""
    by = FlowRow.id if isinstance(name, UUID) else FlowRow.slug
    statement = select(FlowRow).where(by == name).execution_options(populate_existing=True)
    if lock:
        statement = statement.with_for_update(key_share=True)  # executions that begin do not wait
    return (await session.execute(statement)).scalar_one_or_none()


async def page(session: AsyncSession, caller: Caller, project_id: UUID | None, query: PageQuery) -> Page[FlowRow]:
    statement: Select[Any] = select(FlowRow).where(FlowRow.deleted_at.is_(None), caller.visible(FlowRow.project_id))
    if project_id is not None:
        statement = statement.where(FlowRow.project_id == project_id)
    return await paginate(session, statement, FLOWS, query)


async def count(session: AsyncSession, project_id: UUID) -> int:
    statement = select(func.count()).where(FlowRow.project_id == project_id, FlowRow.deleted_at.is_(None))
    return (await session.execute(statement)).scalar_one()


async def named(session: AsyncSession, project_id: UUID, name: str) -> list[UUID]:
    """The project's flows of this very name."""
    statement = select(FlowRow.id).where(
        FlowRow.project_id == project_id, FlowRow.name == name, FlowRow.deleted_at.is_(None)
    )
    return list((await session.execute(statement)).scalars())


async def version(session: AsyncSession, flow_id: UUID, number: int) -> VersionRow | None:
    return await session.get(VersionRow, (flow_id, number))


async def versions(session: AsyncSession, flow_id: UUID, query: PageQuery) -> Page[VersionRow]:
    return await paginate(session, select(VersionRow).where(VersionRow.flow_id == flow_id), VERSIONS, query)


async def in_flight(session: AsyncSession, flow_id: UUID) -> int:
    statement = select(func.count()).where(ExecutionRow.flow_id == flow_id, ExecutionRow.status.in_(LIVE))
    return (await session.execute(statement)).scalar_one()


async def purge(session: AsyncSession, days: int) -> None:
    """Forget flows that were deleted so many days ago, once none of their executions is known any more."""
    await session.execute(_PURGE, {"days": days})


async def default_project(session: AsyncSession, name: str) -> UUID | None:
    return (await session.execute(select(ProjectRow.id).where(ProjectRow.name == name))).scalar_one_or_none()
