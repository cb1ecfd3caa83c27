"""Every place where a sealed value is stored, for those who change the keys: read and written in batches, by id.

The id of a value's key is in bytes 2 to 9 of it (`shared.security.envelope`).
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

COLUMNS = {  # tables with the columns `id` and `sealed`, by the name under which they are told of
    "credential": "platform.credential", "cluster": "platform.cluster", "cluster_access": "platform.cluster_access",
    "endpoint": "platform.endpoint", "flow_secret": "flow.secret", "flow_trigger": "flow.trigger",
    "webhook": "platform.webhook", "webhook_signing_secret": "platform.webhook_signing_secret",
}  # fmt: skip
FIRST = UUID(int=0)

_KEY = "encode(substring({value} FROM 2 FOR 8), 'hex')"
_COLUMN_KEY = _KEY.format(value="sealed")
_FILE_KEY = _KEY.format(value="decode(f.value ->> 'sealed', 'base64')")
_FILES = "jsonb_each(w.files) AS f WHERE f.value ->> 'sealed' IS NOT NULL"

# The topic before the workflow: the order in which all take these locks.
_STALE_FILES = text(f"""
    SELECT w.id, w.files FROM platform.workflow w JOIN jobs.topic t ON t.id = w.id
     WHERE w.id > :after AND EXISTS (SELECT 1 FROM {_FILES} AND {_FILE_KEY} <> :active)
     ORDER BY w.id LIMIT :batch FOR UPDATE OF t, w""")


async def stale(session: AsyncSession, table: str, active: str, after: UUID, batch: int) -> list[tuple[UUID, bytes]]:
    """The next rows after an id whose value is not under the active key, locked."""
    rows = await session.execute(
        text(f"""SELECT id, sealed FROM {COLUMNS[table]}
                  WHERE id > :after AND sealed IS NOT NULL AND {_COLUMN_KEY} <> :active
                  ORDER BY id LIMIT :batch FOR UPDATE"""),
        {"after": after, "active": active, "batch": batch},
    )
    return [(row.id, row.sealed) for row in rows]


async def replace(session: AsyncSession, table: str, row_id: UUID, value: bytes) -> None:
    statement = text(f"UPDATE {COLUMNS[table]} SET sealed = :value WHERE id = :id")
    await session.execute(statement, {"id": row_id, "value": value})


async def stale_files(
    session: AsyncSession, active: str, after: UUID, batch: int
) -> list[tuple[UUID, dict[str, dict[str, Any]]]]:
    """The next workflows after an id with a file that is not under the active key, locked: `{field: {sealed, …}}`."""
    rows = await session.execute(_STALE_FILES, {"after": after, "active": active, "batch": batch})
    return [(row.id, row.files) for row in rows]


async def replace_files(session: AsyncSession, workflow_id: UUID, files: Mapping[str, Any]) -> None:
    statement = text("UPDATE platform.workflow SET files = CAST(:files AS jsonb) WHERE id = :id")
    await session.execute(statement, {"id": workflow_id, "files": to_json(files).decode()})


async def keys_in_use(session: AsyncSession) -> set[str]:
    """The ids of all keys that a stored value names."""
    parts = [f"SELECT {_COLUMN_KEY} AS key FROM {table} WHERE sealed IS NOT NULL" for table in COLUMNS.values()]
    parts.append(f"SELECT {_FILE_KEY} AS key FROM platform.workflow w, {_FILES}")
    return set((await session.execute(text(" UNION ".join(parts)))).scalars())


async def transactions_since_before(session: AsyncSession, moment: Any) -> int:
    """How many other transactions that began before the moment are still open."""
    statement = text("""SELECT count(*) FROM pg_stat_activity
                         WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start < :moment""")
    return int((await session.execute(statement, {"moment": moment})).scalar_one())


async def database_time(session: AsyncSession) -> Any:
    return (await session.execute(text("SELECT clock_timestamp()"))).scalar_one()
