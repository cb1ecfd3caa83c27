"""Rotation of the encryption keys: a new active key, every stored secret under it, and the old keys away.

Only the data keys are wrapped anew; no secret is opened. It may be done while everything runs, by one process at a time,
and when it is interrupted, `finish` goes on where it stopped: what is under the active key already is not touched.
`sealed` has the queries.
"""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.audit import service as audit
from services.app.identity import sealed
from shared import log
from shared.db.engine import Database
from shared.errors import Problem
from shared.security.envelope import Keyring, SealError

BATCH = 100
PATIENCE = 90.0  # seconds; longer than any statement of ours may take
LOOK_AGAIN = 0.2  # seconds

logger = log.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a rotation did. `unreadable` names values that no key of the ring opens; `kept` old keys still in use."""

    active: str
    rewrapped: int
    unreadable: list[str]
    retired: list[str]
    kept: list[str]


async def rotate(database: Database, keyring: Keyring, *, patience: float = PATIENCE) -> Rotation:
    """Make a new active key, bring everything under it, and retire what nothing uses any more.

    Problem `conflict` while another process does the same.
    """
    async with _alone(database):
        await asyncio.to_thread(keyring.rotate)
        return await _finish(database, keyring, patience)


async def finish(database: Database, keyring: Keyring, *, patience: float = PATIENCE) -> Rotation:
    """Go on with a rotation that was interrupted; harmless where there was none."""
    async with _alone(database):
        return await _finish(database, keyring, patience)


async def _finish(database: Database, keyring: Keyring, patience: float) -> Rotation:
    active = keyring.active_key_id
    rewrapped, unreadable = await _rewrap(database, keyring, active)
    if await _older_transactions_end(database, patience):
        # What they stored under an older key.
        more, unreadable = await _rewrap(database, keyring, active)
        rewrapped += more
        retired = await _retire(database, keyring)
    else:
        retired = []
        logger.warning("encryption_keys_kept", reason="a transaction has been open for too long")
    kept = [key_id for key_id in keyring.key_ids if key_id != active]
    done = Rotation(active, rewrapped, unreadable, retired, kept)
    async with database.transaction() as session:
        counts: dict[str, Any] = {"rewrapped": rewrapped, "unreadable": unreadable, "retired": retired, "kept": kept}
        await audit.record(session, None, "encryption.rotate", "encryption_key", active, **counts)
    return done


@asynccontextmanager
async def _alone(database: Database) -> AsyncIterator[None]:
    """The lock is of a connection, not of a transaction, which would look like one that is still open."""
    async with database.statement() as connection:
        lock = text("SELECT pg_try_advisory_lock(5308419)")
        if not (await connection.execute(lock)).scalar_one():
            raise Problem("conflict", "The encryption keys are being rotated by another process.")
        try:
            yield
        finally:
            await connection.execute(text("SELECT pg_advisory_unlock(5308419)"))


async def _rewrap(database: Database, keyring: Keyring, active: str) -> tuple[int, list[str]]:
    """One pass over everything; how many values are under the active key now, and which could not be read."""
    rewrapped, unreadable = 0, list[str]()
    for table in (*sealed.COLUMNS, "workflow"):
        after: UUID | None = sealed.FIRST
        while after is not None:
            async with database.transaction() as session:
                work = _files if table == "workflow" else _column
                after, count = await work(session, keyring, table, active, after, unreadable)
            rewrapped += count
    return rewrapped, unreadable


async def _column(
    session: AsyncSession, keyring: Keyring, table: str, active: str, after: UUID, unreadable: list[str]
) -> tuple[UUID | None, int]:
    """One batch: the last id, or None at the end, and how many values were rewrapped."""
    rows = await sealed.stale(session, table, active, after, BATCH)
    count = 0
    for row_id, value in rows:
        try:
            await sealed.replace(session, table, row_id, keyring.rewrap(value))
            count += 1
        except SealError:
            unreadable.append(f"{table}:{row_id}")
    return (rows[-1][0] if rows else None), count


async def _files(
    session: AsyncSession, keyring: Keyring, table: str, active: str, after: UUID, unreadable: list[str]
) -> tuple[UUID | None, int]:
    rows = await sealed.stale_files(session, active, after, BATCH)
    count = 0
    for workflow_id, files in rows:
        changed = dict[str, Any]()
        for name, file in files.items():
            if file.get("sealed") is None:
                continue
            try:
                value = keyring.rewrap(base64.b64decode(file["sealed"]))
            except SealError:
                unreadable.append(f"{table}:{workflow_id}:{name}")
                continue
            changed[name] = {**file, "sealed": base64.b64encode(value).decode()}
            count += 1
        await sealed.replace_files(session, workflow_id, {**files, **changed})
    return (rows[-1][0] if rows else None), count


async def _older_transactions_end(database: Database, patience: float) -> bool:
    """Wait until no transaction is open that may have sealed something under an older key."""
    async with database.transaction() as session:
        moment = await sealed.database_time(session)
    try:
        async with asyncio.timeout(patience):
            while True:
                async with database.transaction() as session:
                    if await sealed.transactions_since_before(session, moment) == 0:
                        return True
                await asyncio.sleep(LOOK_AGAIN)
    except TimeoutError:
        return False


async def _retire(database: Database, keyring: Keyring) -> list[str]:
    async with database.transaction() as session:
        used = await sealed.keys_in_use(session)
    unused = [key_id for key_id in keyring.key_ids if key_id not in used and key_id != keyring.active_key_id]
    for key_id in unused:
        await asyncio.to_thread(keyring.retire, key_id)
    return unused
