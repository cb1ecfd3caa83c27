"""Users: who there is, and what their role is. Keys are `keys`', logins `logins`'."""

from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from services.app.audit import service as audit
from services.app.identity import repository
from services.app.identity.caller import Caller
from services.app.identity.schemas import UserChange, UserIn, key_view, user_view
from services.app.identity.tables import UserRow
from services.app.resources import Revisions, check_revision, save
from shared.clock import now
from shared.errors import Problem
from shared.http.pages import Page, PageQuery


async def me(session: AsyncSession, caller: Caller) -> dict[str, Any]:
    """The caller: the user, their memberships, and the key that speaks for them."""
    user = await _found(session, caller.user_id)
    key = await repository.key(session, caller.key_id)
    memberships = [
        {"project_id": str(project_id), "project_name": name, "role": role}
        for project_id, name, role in await repository.memberships(session, caller.user_id)
        if caller.sees(project_id)
    ]
    return {**user_view(user), "memberships": memberships, "key": key_view(key) if key else None}


async def page(
    session: AsyncSession, caller: Caller, role: str | None, disabled: bool | None, query: PageQuery
) -> Page[UserRow]:
    """Everyone, for those who choose members for their projects: viewers do not."""
    caller.require("member")
    return await repository.users(session, role, disabled, query)


async def show(session: AsyncSession, caller: Caller, user_id: UUID) -> UserRow:
    if user_id != caller.user_id:
        caller.require("member")
    return await _found(session, user_id)


async def create(session: AsyncSession, caller: Caller, body: UserIn) -> dict[str, Any]:
    """A user without a key; POST /keys with `user_id` makes one."""
    _require_unbound_admin(caller)
    user = UserRow(
        id=uuid4(), name=body.name, display_name=body.display_name, role=body.role, created_at=now(), revision=1
    )
    session.add(user)
    await save(session)
    await audit.record(session, caller, "user.create", "user", user.id, name=user.name, role=user.role)
    return user_view(user)


async def change(
    session: AsyncSession, caller: Caller, user_id: UUID, body: UserChange, expected: Revisions | None
) -> dict[str, Any]:
    """Admins change anyone; others their own display name. Problem `last_admin` rather than leave none."""
    given = body.model_dump(exclude_unset=True)
    if user_id != caller.user_id or given.keys() - {"display_name"}:
        _require_unbound_admin(caller)
    admins = await repository.lock_active_admins(session)
    user = await _found(session, user_id, lock=True)
    check_revision(user, expected)
    before = user_view(user)
    for name in given.keys() & {"display_name", "role"}:
        setattr(user, name, given[name])
    if "disabled" in given and given["disabled"] != before["disabled"]:
        user.disabled_at = now() if given["disabled"] else None
    if user.disabled_at is not None or user.role != "admin":
        _check_not_last(admins, user_id)
    changed = sorted(name for name in given if user_view(user)[name] != before[name])
    if changed:
        user.revision += 1
        await save(session)
        shown = {name: given[name] for name in changed}
        await audit.record(session, caller, "user.change", "user", user_id, **shown)
    return user_view(user)


async def delete(session: AsyncSession, caller: Caller, user_id: UUID, expected: Revisions | None) -> None:
    """Delete a user with their keys, memberships and own credentials. `in_use` while others depend on the latter."""
    _require_unbound_admin(caller)
    admins = await repository.lock_active_admins(session)
    user = await _found(session, user_id, lock=True)
    check_revision(user, expected)
    _check_not_last(admins, user_id)
    if needed := await repository.needed_credentials(session, user_id):
        raise Problem("in_use", f"Projects or endpoints use credentials of this user: {', '.join(needed)}.")
    await repository.delete_user(session, user_id)
    await audit.record(session, caller, "user.delete", "user", user_id, name=user.name)


def _require_unbound_admin(caller: Caller) -> None:
    """People belong to no project: an admin's key that is bound to one does not reach them."""
    caller.require("admin")
    if caller.only_project is not None:
        raise Problem("forbidden", "This key is bound to one project; people are managed with another.")


def _check_not_last(admins: set[UUID], user_id: UUID) -> None:
    if admins == {user_id}:
        raise Problem("last_admin", "This is the last active admin; make another one first.")


async def _found(session: AsyncSession, user_id: UUID, *, lock: bool = False) -> UserRow:
    user = await repository.user(session, user_id, lock=lock)
    if user is None:
        raise Problem("not_found", "There is no such user.")
    return user
