"""What an id in a body names: one query for all of them, and whether the caller may name it.

What may not be seen is answered exactly as what is not there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.identity.caller import Caller
from shared.errors import Fault

_NONE = "NULL::uuid"
_NO_TYPE = "NULL::text AS provider_type"
KINDS = {
    "provider": f"SELECT id, name, icon, {_NONE} AS project_id, {_NONE} AS owner_id, {_NO_TYPE} FROM platform.provider",
    "cloud_model": f"""SELECT c.id, c.name, p.icon, {_NONE} AS project_id, {_NONE} AS owner_id, {_NO_TYPE}
                         FROM platform.cloud_model c JOIN platform.provider p ON p.id = c.provider_id""",
    "model": f"""SELECT id, name, icon, project_id, {_NONE} AS owner_id, provider_type FROM platform.model
                  WHERE state <> 'deleted'""",
    "project": f"SELECT id, name, icon, id AS project_id, {_NONE} AS owner_id, {_NO_TYPE} FROM platform.project",
    "template": f"SELECT id, name, icon, {_NONE} AS project_id, {_NONE} AS owner_id, {_NO_TYPE} FROM platform.template",
    "credential": f"""SELECT id, name, NULL::text AS icon, project_id, owner_id, {_NO_TYPE} FROM platform.credential""",
    "cluster": f"""SELECT id, name, icon, {_NONE} AS project_id, {_NONE} AS owner_id, {_NO_TYPE} FROM platform.cluster
                    WHERE state <> 'deleted'""",
    "endpoint": f"""SELECT id, name, NULL::text AS icon, project_id, {_NONE} AS owner_id, {_NO_TYPE}
                      FROM platform.endpoint WHERE state <> 'deleted'""",
}


@dataclass(frozen=True, slots=True)
class Reference:
    kind: str
    id: UUID
    name: str
    icon: str | None
    project_id: UUID | None
    owner_id: UUID | None
    provider_type: str | None  # of models; variants of wizards turn on it

    def may_be_named_by(self, caller: Caller) -> bool:
        if self.kind == "credential" and self.project_id is None:
            return self.owner_id == caller.user_id and caller.only_project is None
        return caller.sees(self.project_id)

    def view(self) -> dict[str, Any]:
        more = {} if self.provider_type is None else {"provider_type": self.provider_type}
        return {"id": str(self.id), "name": self.name, "icon": self.icon, **more}


Wanted = Iterable[tuple[str, UUID]]
Found = Mapping[tuple[str, UUID], Reference]


async def find(session: AsyncSession, wanted: Wanted) -> dict[tuple[str, UUID], Reference]:
    """What the given (kind, id) pairs name; what is not there is left out."""
    by_kind: dict[str, list[UUID]] = {}
    for kind, value in wanted:
        by_kind.setdefault(kind, []).append(value)
    if not by_kind:
        return {}
    rows = await session.execute(_query(tuple(sorted(by_kind))), by_kind)
    found = [Reference(*row) for row in rows]
    return {(one.kind, one.id): one for one in found}


@cache
def _query(kinds: tuple[str, ...]) -> TextClause:
    parts = [f"SELECT '{kind}' AS kind, q.* FROM ({KINDS[kind]}) q WHERE q.id = ANY(:{kind})" for kind in kinds]
    return text(" UNION ALL ".join(parts))


def named(found: Found, kind: str, value: str | None) -> Reference | None:
    return found.get((kind, UUID(value))) if value else None


def named_in(fields: Mapping[str, Any], references: Mapping[str, str]) -> list[tuple[str, UUID]]:
    return [(kind, UUID(fields[name])) for name, kind in references.items() if fields.get(name)]


def faults(
    caller: Caller,
    fields: Mapping[str, Any],
    references: Mapping[str, str],
    found: Found,
    names: Iterable[str],
) -> list[Fault]:
    """A fault for each of the named fields whose id names nothing that the caller may see."""
    wrong: list[Fault] = []
    for name in names:
        kind = references.get(name)
        if kind is None or not fields.get(name):
            continue
        reference = named(found, kind, fields[name])
        if reference is None or not reference.may_be_named_by(caller):
            what = kind.replace("_", " ")
            wrong.append(Fault(name, "reference_not_found", f"There is no such {what}."))
    return wrong
