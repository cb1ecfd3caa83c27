"""The route of the audit log: who did what to what, for admins, and for managers what was done in their projects."""

from dataclasses import replace
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import AwareDatetime

from services.app.audit import repository
from services.app.audit.repository import Filters
from services.app.audit.tables import AuditRow
from services.app.context import Session
from services.app.identity.authenticate import Authenticated
from services.app.identity.caller import Caller
from services.app.resources import FilterText, text_of
from shared.clock import iso
from shared.errors import Problem
from shared.http.pages import PageParams

router = APIRouter(prefix="/audit", tags=["audit"])


@router.get("")
async def list_audit(
    session: Session,
    caller: Authenticated,
    query: PageParams,
    actor_id: Annotated[UUID | None, Query()] = None,
    action: Annotated[FilterText | None, Query(description="For example `endpoint.delete`.")] = None,
    resource_type: Annotated[FilterText | None, Query()] = None,
    resource_id: Annotated[FilterText | None, Query()] = None,
    project_id: Annotated[UUID | None, Query()] = None,
    since: Annotated[AwareDatetime | None, Query(description="At or after this time.")] = None,
    until: Annotated[AwareDatetime | None, Query(description="Before this time.")] = None,
) -> dict[str, Any]:
    """Lists what was done, newest first."""
    filters = Filters(None, project_id, actor_id, action, resource_type, resource_id, since, until)
    return (await repository.page(session, _narrowed(caller, filters), query)).envelope(_view)


def _narrowed(caller: Caller, filters: Filters) -> Filters:
    """The filters within what the caller may read of the log."""
    if caller.role == "admin" and caller.only_project is None:
        return filters
    managed = [project_id for project_id in caller.projects if caller.manages(project_id)]
    if caller.role == "admin" and caller.only_project is not None:
        managed = [caller.only_project]
    if not managed:
        raise Problem("forbidden", "The audit log is for admins, and for managers of projects.")
    if filters.project_id is not None and filters.project_id not in managed:
        caller.check_sees(filters.project_id, "project")
        raise Problem("forbidden", "Only the project's managers, and admins, read its audit log.")
    return replace(filters, projects=managed)


def _view(row: tuple[AuditRow, str | None]) -> dict[str, Any]:
    entry, actor = row
    return {
        "object": "audit_entry",
        "id": str(entry.id),
        "created_at": iso(entry.at),
        "actor_id": text_of(entry.actor_id),
        "actor": actor,
        "key_id": text_of(entry.key_id),
        "action": entry.action,
        "resource_type": entry.resource_type,
        "resource_id": entry.resource_id,
        "project_id": text_of(entry.project_id),
        "address": entry.address,
        "request_id": entry.request_id,
        "details": entry.details,
    }
