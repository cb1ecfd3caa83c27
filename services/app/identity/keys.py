"""API keys: made, shown once, listed, revoked. A key never grants more than the one that it was made with."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from services.app.audit import service as audit
from services.app.identity import repository
from services.app.identity.caller import SCOPES, Caller
from services.app.identity.schemas import KeyIn, key_view
from services.app.identity.tables import ApiKeyRow
from services.app.resources import check_project, save
from shared.clock import iso, now
from shared.errors import Fault, Problem
from shared.http.pages import Page, PageQuery
from shared.security import apikeys

USABLE_KEYS = 100  # of one user
LONGEST = timedelta(days=3650)


async def page(
    session: AsyncSession, caller: Caller, user_id: UUID | None, project_id: UUID | None, query: PageQuery
) -> Page[ApiKeyRow]:
    """The caller's own keys; an admin may see everyone's."""
    if caller.role != "admin":
        user_id = user_id or caller.user_id
        if user_id != caller.user_id:
            raise Problem("forbidden", "Only an admin sees the keys of others.")
    await check_project(session, caller, project_id)
    return await repository.keys(session, user_id, caller.only_project or project_id, query)


async def show(session: AsyncSession, caller: Caller, key_id: UUID, *, lock: bool = False) -> ApiKeyRow:
    key = await repository.key(session, key_id, lock=lock)
    if key is None or (key.user_id != caller.user_id and caller.role != "admin"):
        raise Problem("not_found", "There is no such key.")
    if caller.only_project not in (None, key.project_id):
        raise Problem("not_found", "There is no such key.")
    return key


async def create(session: AsyncSession, caller: Caller, body: KeyIn) -> dict[str, Any]:
    """The new key's view with `key`, the key itself: the only time that it is shown."""
    owner_id = body.user_id or caller.user_id
    if owner_id != caller.user_id:
        caller.require("admin")
        caller.require_unbound()
    scopes: list[str] = [*(body.scopes or caller.scopes)]
    parent = await repository.key(session, caller.key_id)
    expires_at, bound = _expiry(body), parent.expires_at if parent else None
    if faults := _faults(caller, body, scopes, expires_at, bound):
        raise Problem("validation_failed", faults[0].message, faults=faults)
    await check_project(session, caller, body.project_id)
    # The lock makes simultaneous creations count one after another.
    if await repository.user(session, owner_id, lock=True) is None:
        raise Problem("reference_not_found", "There is no such user.", param="user_id")
    if await repository.usable_keys(session, owner_id) >= USABLE_KEYS:
        raise Problem("quota_exceeded", f"A user may have {USABLE_KEYS} keys; revoke some first.")
    project_id = body.project_id or caller.only_project
    new, row = _new(owner_id, body.name, scopes, project_id, expires_at or bound)
    session.add(row)
    await save(session)  # the project may not be there, or be gone just now
    await _record_creation(session, caller, row)
    return {**key_view(row), "key": new.plain}


async def revoke(session: AsyncSession, caller: Caller, key_id: UUID) -> None:
    """Revoke for ever; what has been revoked stays so."""
    key = await show(session, caller, key_id, lock=True)
    if key.revoked_at is None:
        await repository.revoke(session, key_id)
        await audit.record(session, caller, "key.revoke", "key", key_id, name=key.name, user_id=key.user_id)


async def create_first(session: AsyncSession, owner_id: UUID) -> str:
    """The first admin's key, in full."""
    new, row = _new(owner_id, "First admin key", SCOPES, None, None)
    session.add(row)
    await session.flush()
    await _record_creation(session, None, row)
    return new.plain


def _new(
    owner_id: UUID, name: str, scopes: Sequence[str], project_id: UUID | None, expires_at: datetime | None
) -> tuple[apikeys.NewKey, ApiKeyRow]:
    new = apikeys.new_key()
    row = ApiKeyRow(
        id=uuid4(), user_id=owner_id, name=name, prefix=new.prefix, hash=new.hash, scopes=sorted(set(scopes)),
        project_id=project_id, expires_at=expires_at, created_at=now(),
    )  # fmt: skip
    return new, row


def _expiry(body: KeyIn) -> datetime | None:
    return now() + timedelta(days=body.expires_in_days) if body.expires_in_days else body.expires_at


def _faults(
    caller: Caller, body: KeyIn, scopes: Sequence[str], expires_at: datetime | None, bound: datetime | None
) -> list[Fault]:
    """Where the new key would reach beyond the caller's own."""
    faults: list[Fault] = []
    if beyond := sorted(set(scopes) - caller.scopes):
        faults.append(Fault("scopes", "not_granted", f"Your key does not have: {', '.join(beyond)}."))
    param = "expires_in_days" if body.expires_in_days else "expires_at"
    if expires_at is not None and not now() < expires_at <= now() + LONGEST:
        faults.append(Fault(param, "out_of_range", f"Must be in the future, and within {LONGEST.days} days."))
    if expires_at is not None and bound is not None and expires_at > bound:
        faults.append(Fault(param, "not_granted", f"Your own key expires at {iso(bound)}."))
    return faults


async def _record_creation(session: AsyncSession, caller: Caller | None, key: ApiKeyRow) -> None:
    details = {"name": key.name, "user_id": key.user_id, "scopes": key.scopes, "expires_at": iso(key.expires_at)}
    await audit.record(session, caller, "key.create", "key", key.id, project_id=key.project_id, **details)
