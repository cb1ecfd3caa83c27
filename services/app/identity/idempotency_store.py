"""The rows behind `Idempotency-Key`: claimed before the work, answered after it, let go when there is no answer to keep.

Each call is one statement and one transaction, apart from the work's own, so that a crash in between leaves a claim and
never half an answer. `idempotency` beside this file decides what each finding means.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from pydantic_core import to_json
from sqlalchemy import text

from shared.db.engine import Database

KEPT = "24 hours"
ABANDONED = "60 seconds"  # without a sign of life, a request in flight counts as crashed


@dataclass(frozen=True, slots=True)
class Place:
    """What one key stands for: the same key means something else to another user, method or path."""

    user_id: UUID
    key: str
    method: str
    path: str

    def values(self) -> dict[str, Any]:
        return {"user_id": self.user_id, "key": self.key, "method": self.method, "path": self.path}


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    media_type: str | None
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Earlier:
    """An earlier request at this place. No answer: it is in flight."""

    fingerprint: str
    answer: Answer | None


_CLAIM = text(f"""
    INSERT INTO platform.idempotency AS known (user_id, key, method, path, fingerprint, token)
    VALUES (:user_id, :key, :method, :path, :fingerprint, :token)
    ON CONFLICT (user_id, key, method, path) DO UPDATE
       SET fingerprint = excluded.fingerprint, token = excluded.token, created_at = clock_timestamp(),
           status = NULL, body = NULL, media_type = NULL, headers = NULL
     WHERE known.created_at < clock_timestamp() - interval '{KEPT}'
        OR (known.status IS NULL AND known.fingerprint = excluded.fingerprint
            AND known.created_at < clock_timestamp() - interval '{ABANDONED}')
    RETURNING token""")

_READ = text("""
    SELECT fingerprint, status, body, media_type, headers FROM platform.idempotency
     WHERE user_id = :user_id AND key = :key AND method = :method AND path = :path""")

_MINE = "user_id = :user_id AND key = :key AND method = :method AND path = :path AND token = :token"
_TOUCH = text(f"UPDATE platform.idempotency SET created_at = clock_timestamp() WHERE {_MINE} AND status IS NULL")
_ANSWER = text(f"""
    UPDATE platform.idempotency
       SET status = :status, body = :body, media_type = :media_type, headers = CAST(:headers AS jsonb),
           created_at = clock_timestamp()
     WHERE {_MINE}""")
_RELEASE = text(f"DELETE FROM platform.idempotency WHERE {_MINE} AND status IS NULL")

_PURGE = text(f"""
    DELETE FROM platform.idempotency WHERE (user_id, key, method, path) IN (
        SELECT user_id, key, method, path FROM platform.idempotency
         WHERE created_at < clock_timestamp() - interval '{KEPT}' ORDER BY created_at LIMIT :batch)""")


async def claim(database: Database, place: Place, fingerprint: str) -> UUID | Earlier:
    """A token when the request is the first of its kind, or takes over from one that crashed; else the earlier one."""
    values = {**place.values(), "fingerprint": fingerprint, "token": uuid4()}
    async with database.statement() as connection:
        while True:
            token: UUID | None = (await connection.execute(_CLAIM, values)).scalar_one_or_none()
            if token is not None:
                return token
            row = (await connection.execute(_READ, place.values())).one_or_none()
            if row is not None:
                return Earlier(row.fingerprint, _stored(row))
            # Let go between the two statements: claim again.


async def touch(database: Database, place: Place, token: UUID) -> None:
    """Say that the request is still being worked on."""
    async with database.statement() as connection:
        await connection.execute(_TOUCH, {**place.values(), "token": token})


async def answer(database: Database, place: Place, token: UUID, given: Answer) -> None:
    """Keep the answer, unless another request has taken over."""
    values = {
        "token": token,
        "status": given.status,
        "body": given.body,
        "media_type": given.media_type,
        "headers": to_json(given.headers).decode(),
    }
    async with database.statement() as connection:
        await connection.execute(_ANSWER, {**place.values(), **values})


async def release(database: Database, place: Place, token: UUID) -> None:
    """Forget the request: the next one with this key is the first again."""
    async with database.statement() as connection:
        await connection.execute(_RELEASE, {**place.values(), "token": token})


async def purge(database: Database, batch: int = 1000) -> int:
    """Delete what is older than a day, batch by batch; how many rows that were."""
    purged = 0
    async with database.statement() as connection:
        while (count := (await connection.execute(_PURGE, {"batch": batch})).rowcount) > 0:
            purged += count
    return purged


def _stored(row: Any) -> Answer | None:
    return None if row.status is None else Answer(row.status, row.body, row.media_type, row.headers or {})
