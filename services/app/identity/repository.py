"""Queries of users, keys and logins."""

from typing import Any
from uuid import UUID

from sqlalchemy import Select, delete, func, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.credentials.tables import CredentialRow
from services.app.endpoints.tables import EndpointRow
from services.app.identity.tables import ApiKeyRow, LoginRow, UserRow
from services.app.projects.tables import MemberRow, ProjectRow
from shared.http.pages import Listing, Page, PageQuery, paginate

USERS = Listing(
    id=UserRow.id,
    sortable={"created_at": UserRow.created_at, "name": UserRow.name},
    default="-created_at",
    search=[UserRow.name, UserRow.display_name],
)
KEYS = Listing(
    id=ApiKeyRow.id,
    sortable={"created_at": ApiKeyRow.created_at, "name": ApiKeyRow.name, "last_used_at": ApiKeyRow.last_used_at},
    default="-created_at",
    search=[ApiKeyRow.name, ApiKeyRow.prefix],
)


# ---- users


async def user(session: AsyncSession, user_id: UUID, *, lock: bool = False) -> UserRow | None:
    return await session.get(UserRow, user_id, populate_existing=True, with_for_update=lock)


async def users(session: AsyncSession, role: str | None, disabled: bool | None, query: PageQuery) -> Page[UserRow]:
    statement: Select[Any] = select(UserRow)
    if role is not None:
        statement = statement.where(UserRow.role == role)
    if disabled is not None:
        statement = statement.where(UserRow.disabled_at.is_not(None) if disabled else UserRow.disabled_at.is_(None))
    return await paginate(session, statement, USERS, query)


async def lock_active_admins(session: AsyncSession) -> set[UUID]:
    """Whoever takes an admin away waits here for others who do, so that one always stays."""
    statement = select(UserRow.id).where(UserRow.role == "admin", UserRow.disabled_at.is_(None))
    return set((await session.execute(statement.order_by(UserRow.id).with_for_update())).scalars())


async def delete_user(session: AsyncSession, user_id: UUID) -> None:
    await session.execute(delete(UserRow).where(UserRow.id == user_id))


async def needed_credentials(session: AsyncSession, user_id: UUID) -> list[str]:
    """The names of the user's credentials that others depend on: shared with a project, or used by a live endpoint."""
    used = select(EndpointRow.id).where(
        EndpointRow.credential_id == CredentialRow.id, EndpointRow.state.not_in(["failed", "deleted"])
    )
    statement = select(CredentialRow.name).where(
        CredentialRow.owner_id == user_id, or_(CredentialRow.project_id.is_not(None), used.exists())
    )
    return list((await session.execute(statement.order_by(CredentialRow.name).limit(5))).scalars())


async def memberships(session: AsyncSession, user_id: UUID) -> list[tuple[UUID, str, str]]:
    """(project's id, its name, the role in it), by name."""
    statement = (
        select(ProjectRow.id, ProjectRow.name, MemberRow.role)
        .join(MemberRow, MemberRow.project_id == ProjectRow.id)
        .where(MemberRow.user_id == user_id)
        .order_by(ProjectRow.name)
    )
    return [(row.id, row.name, row.role) for row in await session.execute(statement)]


async def lock_first_start(session: AsyncSession) -> bool:
    """Wait for other processes that start at the same time; whether there is no user yet."""
    await session.execute(text("SELECT pg_advisory_xact_lock(5308418)"))
    return (await session.execute(select(UserRow.id).limit(1))).scalar_one_or_none() is None


# ---- keys


async def key(session: AsyncSession, key_id: UUID, *, lock: bool = False) -> ApiKeyRow | None:
    return await session.get(ApiKeyRow, key_id, populate_existing=True, with_for_update=lock)


async def keys(
    session: AsyncSession, user_id: UUID | None, project_id: UUID | None, query: PageQuery
) -> Page[ApiKeyRow]:
    """The keys of a user; None: of everyone."""
    statement: Select[Any] = select(ApiKeyRow).where(ApiKeyRow.job_id.is_(None))
    if user_id is not None:
        statement = statement.where(ApiKeyRow.user_id == user_id)
    if project_id is not None:
        statement = statement.where(ApiKeyRow.project_id == project_id)
    return await paginate(session, statement, KEYS, query)


async def usable_keys(session: AsyncSession, user_id: UUID) -> int:
    statement = select(func.count()).where(
        ApiKeyRow.user_id == user_id,
        ApiKeyRow.job_id.is_(None),
        ApiKeyRow.revoked_at.is_(None),
        or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > func.now()),
    )
    return (await session.execute(statement)).scalar_one()


async def revoke(session: AsyncSession, key_id: UUID) -> None:
    """Revoke a key and end the logins that were made from it."""
    statement = update(ApiKeyRow).where(ApiKeyRow.id == key_id).values(revoked_at=func.now())
    await session.execute(statement.execution_options(synchronize_session=False))
    await session.execute(delete(LoginRow).where(LoginRow.key_id == key_id))


# ---- logins


async def end_login(session: AsyncSession, digest: str) -> UUID | None:
    """Delete the login; the key that it was made from."""
    statement = delete(LoginRow).where(LoginRow.hash == digest).returning(LoginRow.key_id)
    return (await session.execute(statement)).scalar_one_or_none()


async def purge_logins(session: AsyncSession) -> int:
    """Delete the logins that have expired; how many."""
    gone = await session.execute(delete(LoginRow).where(LoginRow.expires_at < func.now()).returning(LoginRow.id))
    return len(gone.all())
