"""Queries of jobs for people: what a caller may see, and may change."""

from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, false, or_, select, text, true
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.identity.caller import Caller
from shared.errors import Problem
from shared.http.pages import Listing, PageQuery, paginate
from shared.jobs import views
from shared.jobs.tables import JobRow

LISTING = Listing(id=JobRow.id, sortable={"created_at": JobRow.created_at}, default="-created_at", search=[JobRow.kind])


async def page(session: AsyncSession, caller: Caller, filters: dict[str, Any], query: PageQuery) -> dict[str, Any]:
    statement: Select[Any] = select(JobRow.id).where(_seen(caller))
    for name, value in filters.items():
        if value is not None:
            statement = statement.where(getattr(JobRow, name) == value)
    found = await paginate(session, statement, LISTING, query)
    shown = await views.load(session, found.rows)
    return found.envelope(lambda job_id: shown[job_id])


def _seen(caller: Caller) -> ColumnElement[bool]:
    """`_sees` in SQL."""
    theirs = true() if caller.is_at_least("operator") else JobRow.owner_id == caller.user_id
    if caller.only_project is not None:
        theirs = false()
    within = and_(JobRow.project_id.is_not(None), caller.visible(JobRow.project_id))
    return or_(within, and_(JobRow.project_id.is_(None), theirs))


async def _scope(session: AsyncSession, job_id: UUID) -> Any:
    statement = text("SELECT owner_id, project_id, resource_type FROM jobs.job WHERE id = :id")
    return (await session.execute(statement, {"id": job_id})).one_or_none()


async def visible(session: AsyncSession, caller: Caller, job_id: UUID) -> dict[str, Any]:
    """The job's view. What the caller may not see is not there."""
    scope = await _scope(session, job_id)
    shown = await views.load_one(session, job_id)
    if scope is None or shown is None or not _sees(caller, scope):
        raise Problem("not_found", "There is no such job.")
    return shown


async def changeable(session: AsyncSession, caller: Caller, job_id: UUID) -> None:
    """Whoever started a job may cancel and retry it, and operators; the same holds for its workflow.

    Jobs on clusters are for operators, as their start is.
    """
    await visible(session, caller, job_id)
    scope = await _scope(session, job_id)
    if scope.resource_type == "cluster":
        caller.require("operator")
    caller.check_runs(scope.project_id, scope.owner_id, "job")


def _sees(caller: Caller, scope: Any) -> bool:
    if scope.project_id is None:
        is_theirs = scope.owner_id == caller.user_id or caller.is_at_least("operator")
        return bool(is_theirs and caller.only_project is None)
    return caller.sees(scope.project_id)


async def newest_event(session: AsyncSession, job_id: UUID) -> int:
    statement = text("SELECT event_seq FROM jobs.job WHERE id = :id")
    return int(await session.scalar(statement, {"id": job_id}) or 0)
