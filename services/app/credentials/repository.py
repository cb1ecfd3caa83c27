"""Queries of credentials. Whose they are is decided here in SQL for lists, and by `service` for one."""

from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, false, or_, select, true, update
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.credentials.tables import CredentialRow
from services.app.endpoints.tables import EndpointRow
from services.app.identity.caller import Caller
from shared.clock import now
from shared.http.pages import Listing, Page, PageQuery, paginate

CREDENTIALS = Listing(
    id=CredentialRow.id,
    sortable={
        "created_at": CredentialRow.created_at,
        "name": CredentialRow.name,
        "last_used_at": CredentialRow.last_used_at,
    },
    default="-created_at",
    search=[CredentialRow.name],
)


async def get(session: AsyncSession, credential_id: UUID, *, lock: bool = False) -> CredentialRow | None:
    return await session.get(CredentialRow, credential_id, populate_existing=True, with_for_update=lock)


async def page(
    session: AsyncSession, caller: Caller, type_: str | None, project_id: UUID | None, query: PageQuery
) -> Page[CredentialRow]:
    """With a project: what may be used there, its own and the caller's."""
    statement: Select[Any] = select(CredentialRow).where(_visible(caller))
    if type_ is not None:
        statement = statement.where(CredentialRow.type == type_)
    if project_id is not None:
        mine = and_(CredentialRow.project_id.is_(None), CredentialRow.owner_id == caller.user_id)
        statement = statement.where(or_(CredentialRow.project_id == project_id, mine))
    return await paginate(session, statement, CREDENTIALS, query)


def _visible(caller: Caller) -> ColumnElement[bool]:
    personal = true() if caller.role == "admin" else CredentialRow.owner_id == caller.user_id
    if caller.only_project is not None:
        personal = false()
    return or_(
        and_(CredentialRow.project_id.is_(None), personal),
        and_(CredentialRow.project_id.is_not(None), caller.visible(CredentialRow.project_id)),
    )


async def live_endpoints(session: AsyncSession, credential_id: UUID) -> list[str]:
    """The names of endpoints that use the credential now."""
    statement = select(EndpointRow.name).where(
        EndpointRow.credential_id == credential_id, EndpointRow.state.not_in(["failed", "deleted"])
    )
    return list((await session.execute(statement.order_by(EndpointRow.name).limit(5))).scalars())


async def mark_used(session: AsyncSession, credential_id: UUID) -> None:
    statement = update(CredentialRow).where(CredentialRow.id == credential_id).values(last_used_at=now())
    await session.execute(statement.execution_options(synchronize_session=False))
