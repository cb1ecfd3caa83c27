"""Queries of the audit log."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.audit.tables import AuditRow
from services.app.identity.tables import UserRow
from shared.http.pages import Listing, Page, PageQuery, paginate

# Entries are numbered as they are written, so the number is the order in time.
ENTRIES = Listing(
    id=AuditRow.id,
    sortable={"created_at": AuditRow.id},
    default="-created_at",
    search=[AuditRow.action, AuditRow.resource_id],
)


@dataclass(frozen=True, slots=True)
class Filters:
    """`projects`: only what belongs to one of these; None is everything."""

    projects: list[UUID] | None = None
    project_id: UUID | None = None
    actor_id: UUID | None = None
    action: str | None = None
    resource_type: str | None = None
    resource_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


async def page(session: AsyncSession, filters: Filters, query: PageQuery) -> Page[tuple[AuditRow, str | None]]:
    """Entries with the present name of who acted; null for the platform itself and for deleted users."""
    statement: Select[Any, Any] = select(AuditRow, UserRow.name).outerjoin(UserRow, UserRow.id == AuditRow.actor_id)
    if filters.projects is not None:
        statement = statement.where(AuditRow.project_id.in_(filters.projects))
    for name in ("project_id", "actor_id", "action", "resource_type", "resource_id"):
        if (value := getattr(filters, name)) is not None:
            statement = statement.where(getattr(AuditRow, name) == value)
    if filters.since is not None:
        statement = statement.where(AuditRow.at >= filters.since)
    if filters.until is not None:
        statement = statement.where(AuditRow.at < filters.until)
    return await paginate(session, statement, ENTRIES, query)
