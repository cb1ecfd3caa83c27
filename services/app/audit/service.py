"""Writes the audit log, in the transaction of what it tells of."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.identity.caller import Caller
from shared.log import request_id


class Actor(NamedTuple):
    """Who did something in a request that found no caller."""

    user_id: UUID
    key_id: UUID
    address: str | None


_INSERT = text("""
    INSERT INTO platform.audit (actor_id, key_id, action, resource_type, resource_id, project_id, address, request_id, details)
    VALUES (:actor, :key, :action, :type, :id, :project, :address, :request, CAST(:details AS jsonb))""")


async def record(
    session: AsyncSession,
    caller: Caller | Actor | None,
    action: str,
    resource_type: str,
    resource_id: UUID | str | None,
    *,
    project_id: UUID | None = None,
    **details: Any,
) -> None:
    """`action` is `<resource>.<verb>`, e.g. `endpoint.delete`. `details` never hold secrets. No caller: the platform itself."""
    values = _values(caller, action, resource_type, resource_id, project_id, details)
    await session.execute(_INSERT, values)


async def record_all(
    session: AsyncSession,
    caller: Caller,
    action: str,
    resource_type: str,
    entries: Sequence[tuple[UUID, Mapping[str, Any]]],
    *,
    project_id: UUID,
) -> None:
    """The same of many resources at once; `entries` are their ids with the details."""
    if entries:
        rows = [_values(caller, action, resource_type, one, project_id, details) for one, details in entries]
        await session.execute(_INSERT, rows)


def _values(
    caller: Caller | Actor | None,
    action: str,
    resource_type: str,
    resource_id: UUID | str | None,
    project_id: UUID | None,
    details: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "actor": caller.user_id if caller else None,
        "key": caller.key_id if caller else None,
        "action": action,
        "type": resource_type,
        "id": None if resource_id is None else str(resource_id),
        "project": project_id,
        "address": caller.address if caller else None,
        "request": request_id(),
        "details": to_json(details).decode(),
    }
