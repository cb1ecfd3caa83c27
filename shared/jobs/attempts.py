"""Attempts of steps, as the ledger records them. Each change is one statement: the step, its event, its place in the order.

An attempt begins with the run's fence and gets a token; what it reports carries the token, and a stale one is refused.
Undo uses the same records: a step that was taken back is `undone` and has forgotten its result.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from pydantic_core import to_json
from sqlalchemy import TextClause, text

from shared.db.engine import Database
from shared.jobs.hub import Hub
from shared.jobs.ledger import StaleFence
from shared.jobs.views import step_view


@dataclass(frozen=True, slots=True)
class Begun:
    """An attempt that may work now. `number` counts all attempts, `tries` those of this run."""

    token: UUID
    number: int
    tries: int


@dataclass(frozen=True, slots=True)
class Remembered:
    """The step has succeeded before; this is what it returned."""

    result: Any


class CancelRequested(Exception):
    """The job is to be undone; no step goes forward any more."""


def _with_event(guard: str, change: str, *, job_set: str = "") -> TextClause:
    """A statement that changes one step (`change`, returning its row) of a job that passes `guard`, and writes the event."""
    return text(f"""
        WITH job AS (UPDATE jobs.job SET event_seq = event_seq + 1{job_set}
                      WHERE id = :job AND fence = :fence AND {guard} RETURNING id, event_seq, topic),
             changed AS ({change}),
             topic AS (UPDATE jobs.topic t SET seq = t.seq + 1 FROM job WHERE t.id = job.topic RETURNING t.seq),
             event AS (INSERT INTO jobs.event (job_id, seq, topic, topic_seq, type, data)
                       SELECT job.id, job.event_seq, job.topic, (SELECT seq FROM topic), 'step', {step_view("changed")}
                         FROM job, changed)
        SELECT changed.attempt, changed.tries, job.topic FROM changed, job
    """)


_OWN = "EXISTS (SELECT 1 FROM jobs.step s WHERE s.job_id = :job AND s.key = :key AND s.token = :token AND s.state = 'running')"

_BEGIN = _with_event(
    """state = 'running' AND phase = 'forward'
       AND NOT EXISTS (SELECT 1 FROM jobs.step s WHERE s.job_id = :job AND s.key = :key AND s.state = 'succeeded')""",
    """INSERT INTO jobs.step AS step (job_id, key, position, title, weight, state, attempt, tries, token, started_at)
       SELECT job.id, :key, coalesce((SELECT max(position) FROM jobs.step WHERE job_id = :job), 0) + 1, :title, :weight,
              'running', 1, 1, :token, clock_timestamp() FROM job
       ON CONFLICT (job_id, key) DO UPDATE
          SET state = 'running', attempt = step.attempt + 1, tries = step.tries + 1, token = excluded.token,
              started_at = excluded.started_at, ended_at = NULL, percent = NULL, message = NULL, error = NULL
       RETURNING step.*""",
)

_SUCCEED = _with_event(
    _OWN,
    """UPDATE jobs.step SET state = 'succeeded', result = CAST(:result AS jsonb), error = NULL, run_at = NULL,
              percent = 100, token = NULL, ended_at = clock_timestamp()
         FROM job WHERE job_id = job.id AND key = :key RETURNING step.*""",
)

_FAIL = _with_event(
    _OWN,
    """UPDATE jobs.step SET state = :state, error = CAST(:error AS jsonb), token = NULL,
              run_at = clock_timestamp() + make_interval(secs => :after), ended_at = clock_timestamp()
         FROM job WHERE job_id = job.id AND key = :key RETURNING step.*""",
)

_PROGRESS = _with_event(
    _OWN,
    """UPDATE jobs.step SET percent = :percent, message = :message
         FROM job WHERE job_id = job.id AND key = :key RETURNING step.*""",
)

_UNDONE = _with_event(
    "phase = 'undo'",
    """UPDATE jobs.step SET state = 'undone', result = NULL, token = NULL, error = CAST(:error AS jsonb), run_at = NULL,
              percent = NULL, ended_at = clock_timestamp()
         FROM job WHERE job_id = job.id AND key = :key RETURNING step.*""",
)

_UNDO_FAILED = _with_event(
    "phase = 'undo'",
    """UPDATE jobs.step SET error = CAST(:error AS jsonb)
         FROM job WHERE job_id = job.id AND key = :key RETURNING step.*""",
)

_LOOK = text("""
    SELECT job.fence, job.state, job.phase, step.state AS step_state, step.result
      FROM jobs.job job LEFT JOIN jobs.step step ON step.job_id = job.id AND step.key = :key WHERE job.id = :job
""")


def _json(value: Any) -> str | None:
    return None if value is None else to_json(value).decode()


class Attempts:
    """Where an engine begins and reports attempts. In a service without the database, the same calls go through the app."""

    def __init__(self, database: Database, hub: Hub) -> None:
        self._database = database
        self._hub = hub

    async def begin(self, job: UUID, fence: int, key: str, title: str, weight: float) -> Begun | Remembered:
        """Raises `CancelRequested` when the job is to be undone, `StaleFence` when it belongs to another process."""
        token = uuid4()
        values = {"job": job, "fence": fence, "key": key, "title": title, "weight": weight, "token": token}
        row = await self._write(_BEGIN, values)
        if row is not None:
            return Begun(token, row.attempt, row.tries)
        async with self._database.statement() as connection:
            seen = (await connection.execute(_LOOK, {"job": job, "key": key})).one_or_none()
        if seen is None or seen.fence != fence:
            raise StaleFence(str(job))
        if seen.step_state == "succeeded":
            return Remembered(seen.result)
        if seen.phase == "undo" or seen.state == "cancelling":
            raise CancelRequested(str(job))
        raise StaleFence(str(job))

    async def succeed(self, job: UUID, fence: int, key: str, token: UUID, result: Any) -> None:
        values = {"job": job, "fence": fence, "key": key, "token": token, "result": to_json(result).decode()}
        await self._report(_SUCCEED, values)

    async def fail(
        self,
        job: UUID,
        fence: int,
        key: str,
        token: UUID,
        error: dict[str, Any],
        *,
        state: str = "failed",
        after: float = 0,
    ) -> None:
        """`state` is `failed`, `pending` (it will be tried again, `after` seconds) or `cancelled`."""
        values = {"job": job, "fence": fence, "key": key, "token": token, "state": state, "after": after}
        await self._report(_FAIL, {**values, "error": _json(error)})

    async def progress(
        self, job: UUID, fence: int, key: str, token: UUID, percent: float | None, message: str | None
    ) -> None:
        values = {"job": job, "fence": fence, "key": key, "token": token, "percent": percent, "message": message}
        await self._report(_PROGRESS, values)

    async def undone(self, job: UUID, fence: int, key: str) -> None:
        await self._report(_UNDONE, {"job": job, "fence": fence, "key": key, "error": None})

    async def undo_failed(self, job: UUID, fence: int, key: str, error: dict[str, Any]) -> None:
        await self._report(_UNDO_FAILED, {"job": job, "fence": fence, "key": key, "error": _json(error)})

    async def backoff_left(self, job: UUID, key: str) -> float:
        """Seconds until a failed attempt may be followed by the next."""
        statement = text("""SELECT extract(epoch FROM run_at - clock_timestamp()) FROM jobs.step
                             WHERE job_id = :job AND key = :key AND state = 'pending'""")
        async with self._database.statement() as connection:
            left = await connection.scalar(statement, {"job": job, "key": key})
        return max(float(left or 0), 0.0)

    async def wait(self, job: UUID, fence: int, key: str, seconds: float | None) -> float | None:
        """Record when a wait ends (`seconds` from its first call), and return the seconds that are left; None is for ever."""
        statement = text("""
            UPDATE jobs.step SET run_at = coalesce(run_at, clock_timestamp() + make_interval(secs => :seconds))
             WHERE job_id = :job AND key = :key
               AND EXISTS (SELECT 1 FROM jobs.job WHERE id = :job AND fence = :fence)
            RETURNING extract(epoch FROM run_at - clock_timestamp()) AS left""")
        async with self._database.statement() as connection:
            row = (
                await connection.execute(statement, {"job": job, "fence": fence, "key": key, "seconds": seconds})
            ).one_or_none()
        if row is None:
            raise StaleFence(str(job))
        return None if row.left is None else float(row.left)

    async def take_signal(self, job: UUID, key: str, name: str) -> tuple[bool, Any]:
        """Take the oldest event of that name for this step: (whether there was one, its data). Taking again gives the same."""
        statement = text("""
            UPDATE jobs.signal SET taken_by = :key WHERE id = (
                SELECT id FROM jobs.signal WHERE job_id = :job AND name = :name AND (taken_by IS NULL OR taken_by = :key)
                 ORDER BY (taken_by = :key) DESC NULLS LAST, id LIMIT 1 FOR UPDATE)
            RETURNING data""")
        async with self._database.statement() as connection:
            row = (await connection.execute(statement, {"job": job, "key": key, "name": name})).one_or_none()
        return (False, None) if row is None else (True, row.data)

    async def plan(self, job: UUID, keys: list[str], titles: list[str], weights: list[float]) -> None:
        statement = text("""
            INSERT INTO jobs.step (job_id, key, position, title, weight)
            SELECT :job, key, coalesce((SELECT max(position) FROM jobs.step WHERE job_id = :job), 0) + position, title, weight
              FROM unnest(CAST(:keys AS text[]), CAST(:titles AS text[]), CAST(:weights AS float8[]))
                   WITH ORDINALITY AS s(key, title, weight, position)
            ON CONFLICT (job_id, key) DO NOTHING""")
        async with self._database.statement() as connection:
            await connection.execute(statement, {"job": job, "keys": keys, "titles": titles, "weights": weights})
        self._hub.publish(job)

    async def _report(self, statement: TextClause, values: dict[str, Any]) -> None:
        if await self._write(statement, values) is None:
            raise StaleFence(str(values["job"]))

    async def _write(self, statement: TextClause, values: dict[str, Any]) -> Any:
        async with self._database.statement() as connection:
            row = (await connection.execute(statement, values)).one_or_none()
        if row is not None:
            self._hub.publish(values["job"], row.topic)
        return row
