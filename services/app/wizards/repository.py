"""Queries of workflows. A workflow is locked by its topic first, then its row: the order in which a job's end takes them."""

from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.identity.caller import Caller
from services.app.wizards.tables import WorkflowRow
from shared.http.pages import Listing, Page, PageQuery, paginate
from shared.jobs.tables import JobRow, TopicRow

LISTING = Listing(
    id=WorkflowRow.id,
    sortable={"created_at": WorkflowRow.created_at, "updated_at": WorkflowRow.updated_at},
    default="-created_at",
    search=[WorkflowRow.fields["name"].astext, WorkflowRow.fields["endpoint_name"].astext, WorkflowRow.type],
)


async def insert(session: AsyncSession, workflow: WorkflowRow) -> None:
    await session.execute(text("INSERT INTO jobs.topic (id) VALUES (:id)"), {"id": workflow.id})
    session.add(workflow)
    await session.flush()


async def lock(session: AsyncSession, workflow_id: UUID) -> tuple[WorkflowRow, str | None] | None:
    """The workflow, locked, and the state of its job."""
    job_state = select(JobRow.state).where(JobRow.id == WorkflowRow.job_id).scalar_subquery()
    statement = (
        select(WorkflowRow, job_state)
        .join(TopicRow, TopicRow.id == WorkflowRow.id)
        .where(WorkflowRow.id == workflow_id)
        .with_for_update(of=[TopicRow, WorkflowRow])
        .execution_options(populate_existing=True)
    )
    row = (await session.execute(statement)).one_or_none()
    return None if row is None else (row[0], row[1])


async def get(session: AsyncSession, workflow_id: UUID) -> WorkflowRow | None:
    return await session.get(WorkflowRow, workflow_id, populate_existing=True)


async def open_drafts(session: AsyncSession, owner_id: UUID) -> int:
    statement = select(func.count()).where(
        WorkflowRow.owner_id == owner_id, WorkflowRow.status == "in_progress", WorkflowRow.job_id.is_(None)
    )
    return (await session.execute(statement)).scalar_one()


async def page(session: AsyncSession, caller: Caller, filters: dict[str, Any], query: PageQuery) -> Page[WorkflowRow]:
    statement: Select[Any] = select(WorkflowRow)
    if not caller.is_at_least("operator"):
        statement = statement.where(WorkflowRow.owner_id == caller.user_id)
    for name, value in filters.items():
        if value is not None:
            statement = statement.where(getattr(WorkflowRow, name) == value)
    return await paginate(session, statement, LISTING, query)


async def expire(session: AsyncSession, idle_days: int) -> list[UUID]:
    """Cancel drafts that nobody has touched for that long; returns them."""
    statement = (
        update(WorkflowRow)
        .where(
            WorkflowRow.status == "in_progress",
            WorkflowRow.job_id.is_(None),
            WorkflowRow.updated_at < func.now() - func.make_interval(0, 0, 0, idle_days),
        )
        .values(status="cancelled", ended_at=func.now(), files={})
        .returning(WorkflowRow.id)
    )
    return list((await session.execute(statement)).scalars())
