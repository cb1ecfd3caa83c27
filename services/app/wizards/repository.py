"""Queries of workflows. A workflow is locked by its topic first, then its row: the order in which a job's end takes them."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Select, bindparam, func, or_, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.identity.caller import Caller
from services.app.identity.tables import UserRow
from services.app.projects.tables import MemberRow
from services.app.wizards.access import readable
from services.app.wizards.tables import WorkflowRow
from shared.http.pages import Listing, Page, PageQuery, paginate
from shared.jobs.ledger import FINAL
from shared.jobs.tables import JobRow, TopicRow

LISTING = Listing(
    id=WorkflowRow.id,
    sortable={"created_at": WorkflowRow.created_at, "updated_at": WorkflowRow.updated_at},
    default="-created_at",
    search=[WorkflowRow.fields["name"].astext, WorkflowRow.fields["endpoint_name"].astext, WorkflowRow.type],
)
EXACT_BELOW = 64  # drafts: so many requests cannot come between two counts


# Made once: to put a statement together takes as long as to run it.
_TOPIC = text("INSERT INTO jobs.topic (id) VALUES (:id)")
_LOCK = (
    select(WorkflowRow)
    .join(TopicRow, TopicRow.id == WorkflowRow.id)
    .where(WorkflowRow.id == bindparam("workflow"))
    .with_for_update(of=[TopicRow, WorkflowRow])
    .execution_options(populate_existing=True)
)
_OPEN_DRAFTS = select(func.count()).where(
    WorkflowRow.owner_id == bindparam("owner"), WorkflowRow.status == "in_progress", WorkflowRow.job_id.is_(None)
)


class Standing(StrEnum):
    """What may be done with a workflow. A failed one that was edited is a draft again, though it has had a job."""

    DRAFT = "draft"
    RUNNING = "running"
    FAILED = "failed"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


def standing_of(workflow: WorkflowRow, job_state: str | None) -> Standing:
    if workflow.status != "in_progress":
        return Standing(workflow.status)
    return Standing.DRAFT if job_state is None or job_state in FINAL else Standing.RUNNING


@dataclass(frozen=True, slots=True)
class Locked:
    workflow: WorkflowRow
    standing: Standing


async def insert(session: AsyncSession, workflow: WorkflowRow) -> None:
    await session.execute(_TOPIC, {"id": workflow.id})
    session.add(workflow)
    await session.flush()


async def lock(session: AsyncSession, workflow_id: UUID) -> Locked | None:
    """The workflow as it is now, and stays until the end of the transaction."""
    workflow = (await session.execute(_LOCK, {"workflow": workflow_id})).scalar_one_or_none()
    if workflow is None:
        return None
    return Locked(workflow, await standing(session, workflow))


async def standing(session: AsyncSession, workflow: WorkflowRow) -> Standing:
    """A statement of its own: one that waits for a lock sees the other tables as they were before it waited."""
    state = None
    if workflow.job_id is not None and workflow.status == "in_progress":
        state = await session.scalar(select(JobRow.state).where(JobRow.id == workflow.job_id))
    return standing_of(workflow, state)


async def get(session: AsyncSession, workflow_id: UUID) -> WorkflowRow | None:
    return await session.get(WorkflowRow, workflow_id, populate_existing=True)


async def open_drafts(session: AsyncSession, owner_id: UUID, limit: int) -> int:
    """How many drafts a user has; near the limit, whoever counts waits for the others who do."""
    count: int = await session.scalar(_OPEN_DRAFTS, {"owner": owner_id}) or 0
    if count < limit - EXACT_BELOW:
        return count
    await session.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"), {"key": f"draft:{owner_id}"})
    exact: int = await session.scalar(_OPEN_DRAFTS, {"owner": owner_id}) or 0
    return exact


async def page(session: AsyncSession, caller: Caller, filters: dict[str, Any], query: PageQuery) -> Page[WorkflowRow]:
    statement: Select[Any] = select(WorkflowRow).where(readable(caller))
    for name, value in filters.items():
        if value is not None:
            statement = statement.where(getattr(WorkflowRow, name) == value)
    return await paginate(session, statement, LISTING, query)


async def idle_drafts(session: AsyncSession, idle_days: int, limit: int) -> list[UUID]:
    """Drafts that nobody has touched for that long."""
    job_ended = select(JobRow.id).where(JobRow.id == WorkflowRow.job_id, JobRow.state.in_(FINAL)).exists()
    statement = select(WorkflowRow.id).where(
        WorkflowRow.status == "in_progress",
        or_(WorkflowRow.job_id.is_(None), job_ended),
        WorkflowRow.updated_at < func.now() - func.make_interval(0, 0, 0, idle_days),
    )
    return list((await session.execute(statement.order_by(WorkflowRow.id).limit(limit))).scalars())


async def owner_of(session: AsyncSession, workflow: WorkflowRow) -> Caller:
    """The one whom a workflow belongs to, as a caller: a workflow looks the same to whoever reads it."""
    statement = (
        select(UserRow.name, UserRow.role, MemberRow.project_id, MemberRow.role.label("membership"))
        .outerjoin(MemberRow, MemberRow.user_id == UserRow.id)
        .where(UserRow.id == workflow.owner_id)
    )
    rows = (await session.execute(statement)).all()
    name, role = (rows[0].name, rows[0].role) if rows else ("", "viewer")
    projects = {row.project_id: row.membership for row in rows if row.project_id is not None}
    return Caller(workflow.owner_id, name, role, workflow.owner_id, frozenset(), projects)
