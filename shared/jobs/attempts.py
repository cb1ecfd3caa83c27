"""Attempts of steps, as the ledger records them. Each change is one statement: the step, its event, its place in the order.

An attempt begins with the run's fence and gets a token; what it reports carries the token, and a stale one is refused.
Undo uses the same records: a step that was taken back is `undone` and has forgotten its result.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, LiteralString, TypeVar
from uuid import UUID, uuid4

import psycopg
import structlog
from sqlalchemy import exc, text

from shared.db.engine import Database
from shared.jobs.hub import Hub
from shared.jobs.lane import Lane
from shared.jobs.ledger import StaleFence, emit_job
from shared.jobs.stored import json_text, short_text
from shared.jobs.views import job_percent, step_view

PAUSE, LONGEST_PAUSE = 0.1, 2.0  # seconds between the tries to reach the database
# A run that a service drives may be silent for as long.
RENEWED = "CASE WHEN job.lease_until IS NOT NULL THEN clock_timestamp() + interval '30 seconds' END"

_PASSING = (psycopg.OperationalError, exc.OperationalError, exc.InterfaceError, exc.TimeoutError)

T = TypeVar("T")
log = structlog.get_logger(__name__)


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


class CancelRequested(BaseException):
    """The job is to be undone; no step goes forward any more. No `Exception`, so that no job catches it by accident."""

    outcome = "cancelled"


def _with_event(guard: LiteralString, change: LiteralString, more: LiteralString = "") -> LiteralString:
    """A statement that changes one step (`change`, returning its row) of a job that passes `guard`, and writes the event.

    The job is locked first, as everywhere. Its conditions and those in `change` are then checked on the newest rows, and
    no number of the sequence is used up when nothing changes.
    """
    return f"""
        WITH job AS (SELECT id FROM jobs.job WHERE id = %(job)s AND fence = %(fence)s AND {guard} FOR NO KEY UPDATE),
             changed AS ({change}),
             counted AS (UPDATE jobs.job SET event_seq = event_seq + 1, lease_until = {RENEWED}
                           FROM changed WHERE job.id = changed.job_id
                         RETURNING job.id, job.event_seq, job.topic),
             topic AS (UPDATE jobs.topic t SET seq = t.seq + 1 FROM counted WHERE t.id = counted.topic RETURNING t.seq),
             event AS (INSERT INTO jobs.event (job_id, seq, topic, topic_seq, type, data)
                       SELECT counted.id, counted.event_seq, counted.topic, (SELECT seq FROM topic), 'step',
                              {step_view("changed")} || jsonb_build_object('job_percent', {job_percent("changed")})
                         FROM counted, changed)
        SELECT changed.attempt, changed.tries, counted.topic{more} FROM changed, counted
    """


_OWN = "step.job_id = job.id AND step.key = %(key)s AND step.token = %(token)s AND step.state = 'running'"

_BEGIN = _with_event(
    "state = 'running' AND phase = 'forward'",
    """INSERT INTO jobs.step AS step (job_id, key, position, title, weight, state, attempt, tries, token, started_at)
       SELECT job.id, %(key)s,
              coalesce((SELECT position FROM jobs.step WHERE job_id = %(job)s AND key = %(key)s),
                       (SELECT max(position) FROM jobs.step WHERE job_id = %(job)s) + 1, 1),
              %(title)s, %(weight)s, 'running', 1, 1, %(token)s, clock_timestamp() FROM job
       ON CONFLICT (job_id, key) DO UPDATE
          SET state = 'running', attempt = step.attempt + 1, tries = step.tries + 1, token = excluded.token,
              started_at = excluded.started_at, ended_at = NULL, percent = NULL, message = NULL, error = NULL
        WHERE step.state <> 'succeeded'
       RETURNING step.*""",
    # An attempt that leaves nothing to undo may be forgotten when the server crashes within the next moments; what is
    # recorded of its end is flushed, and with it all that went before.
    ", set_config('synchronous_commit', CASE WHEN %(durable)s THEN current_setting('synchronous_commit') ELSE 'off' END, true)",
)

_SUCCEED = _with_event(
    "true",
    f"""UPDATE jobs.step SET state = 'succeeded', result = CAST(%(result)s AS jsonb), error = NULL, run_at = NULL,
               percent = 100, message = NULL, token = NULL, ended_at = clock_timestamp()
          FROM job WHERE {_OWN} RETURNING step.*""",
)

_FAIL = _with_event(
    "true",
    f"""UPDATE jobs.step SET state = %(state)s, error = CAST(%(error)s AS jsonb), token = NULL,
               run_at = clock_timestamp() + make_interval(secs => %(after)s), ended_at = clock_timestamp()
          FROM job WHERE {_OWN} RETURNING step.*""",
)

_PROGRESS = _with_event(
    "true", f"UPDATE jobs.step SET percent = %(percent)s, message = %(message)s FROM job WHERE {_OWN} RETURNING step.*"
)

_UNDONE = _with_event(
    "phase = 'undo'",
    """UPDATE jobs.step SET state = 'undone', result = NULL, token = NULL, error = NULL, run_at = NULL,
              percent = NULL, message = NULL, undo_tries = 0, ended_at = clock_timestamp()
         FROM job WHERE step.job_id = job.id AND step.key = %(key)s RETURNING step.*""",
)

_UNDO_FAILED = _with_event(
    "phase = 'undo'",
    """UPDATE jobs.step SET error = CAST(%(error)s AS jsonb), undo_tries = 0
         FROM job WHERE step.job_id = job.id AND step.key = %(key)s RETURNING step.*""",
)

# No event: readers see how it ends.
_UNDO_BEGUN = """
    UPDATE jobs.step SET undo_tries = undo_tries + 1 WHERE job_id = %(job)s AND key = %(key)s
       AND EXISTS (SELECT 1 FROM jobs.job WHERE id = %(job)s AND fence = %(fence)s AND phase = 'undo')
    RETURNING undo_tries
"""

_LOOK = """
    SELECT job.fence, job.state, job.phase, step.state AS step_state, step.token, step.result
      FROM jobs.job job LEFT JOIN jobs.step step ON step.job_id = job.id AND step.key = %(key)s WHERE job.id = %(job)s
"""


async def patiently(work: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
    """What `work` returns, and whether it was tried before: a try whose answer was lost may have been committed.

    A database that is away, full or too busy is waited for: hours of a step's work are worth it. Who has lost the run
    meanwhile is told so by its fence, or stopped by its engine.
    """
    pause = PAUSE
    while True:
        try:
            return await work(), pause > PAUSE
        except _PASSING as error:
            log.warning("ledger_away", error=type(error).__name__)
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)


class Attempts:
    """Where an engine begins and reports attempts. In a service without the database, the same calls go through the app.

    `repeats`: whoever calls may call again when an answer was lost, so what was written already is no fault.
    """

    def __init__(self, database: Database, hub: Hub, *, repeats: bool = False) -> None:
        self._repeats = repeats
        self._database = database
        self._hub = hub
        self._lane = Lane(database.url)

    async def close(self) -> None:
        await self._lane.close()

    async def begin(
        self, job: UUID, fence: int, key: str, title: str, weight: float, *, durable: bool
    ) -> Begun | Remembered:
        """`durable` where the attempt may leave something to undo.

        Raises `CancelRequested` when the job is to be undone, `StaleFence` when it belongs to another process.
        """
        token = uuid4()
        values = {"job": job, "fence": fence, "key": key, "title": title, "weight": weight, "token": token}
        values["durable"] = durable
        row, _ = await self._write(_BEGIN, values)
        if row is not None:
            return Begun(token, row.attempt, row.tries)
        seen, _ = await self._one(_LOOK, {"job": job, "key": key})
        if seen is None or seen.fence != fence:
            raise StaleFence(str(job))
        if seen.step_state == "succeeded":
            return Remembered(seen.result)
        if seen.phase == "undo":
            raise CancelRequested(str(job))
        raise StaleFence(str(job))

    async def succeed(self, job: UUID, fence: int, key: str, token: UUID, result: Any) -> None:
        """Taken also from an attempt that ends while its job is being cancelled: the undo then knows the result."""
        values = {"job": job, "fence": fence, "key": key, "token": token, "result": json_text(result)}
        await self._report(_SUCCEED, values, "succeeded")

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
        await self._report(_FAIL, {**values, "error": json_text(error)}, state)

    async def progress(
        self, job: UUID, fence: int, key: str, token: UUID, percent: float | None, message: str | None
    ) -> None:
        """Tried once: the next one tells more."""
        message = None if message is None else short_text(message)
        values = {"job": job, "fence": fence, "key": key, "token": token, "percent": percent, "message": message}
        row = await self._lane.one(_PROGRESS, values)
        if row is None:
            raise StaleFence(str(job))
        self._hub.publish(job, row.topic)

    async def begin_undo(self, job: UUID, fence: int, key: str) -> int:
        """How often the undo of this step has begun since it last ended, with this time: processes may have died of it."""
        row, _ = await self._one(_UNDO_BEGUN, {"job": job, "fence": fence, "key": key})
        if row is None:
            raise StaleFence(str(job))
        return int(row.undo_tries)

    async def undone(self, job: UUID, fence: int, key: str) -> None:
        await self._report(_UNDONE, {"job": job, "fence": fence, "key": key}, "undone")

    async def undo_failed(self, job: UUID, fence: int, key: str, error: dict[str, Any]) -> None:
        await self._report(_UNDO_FAILED, {"job": job, "fence": fence, "key": key, "error": json_text(error)}, None)

    async def results(self, job: UUID) -> dict[str, Any]:
        """`{key: result}` of the steps that have one."""
        statement = "SELECT key, result FROM jobs.step WHERE job_id = %(job)s AND state = 'succeeded'"
        rows, _ = await patiently(partial(self._lane.all, statement, {"job": job}))
        return {row.key: row.result for row in rows}

    async def backoff_left(self, job: UUID, key: str) -> float:
        """Seconds until a failed attempt may be followed by the next."""
        statement = """SELECT extract(epoch FROM run_at - clock_timestamp()) FROM jobs.step
                             WHERE job_id = %(job)s AND key = %(key)s AND state = 'pending'"""
        row, _ = await self._one(statement, {"job": job, "key": key})
        return 0.0 if row is None else max(float(row[0] or 0), 0.0)

    async def wait(self, job: UUID, fence: int, key: str, seconds: float | None) -> float | None:
        """Record when a wait ends (`seconds` from its first call), and return the seconds that are left; None is for ever."""
        statement = """
            UPDATE jobs.step SET run_at = coalesce(run_at, clock_timestamp() + make_interval(secs => %(seconds)s))
             WHERE job_id = %(job)s AND key = %(key)s
               AND EXISTS (SELECT 1 FROM jobs.job WHERE id = %(job)s AND fence = %(fence)s)
            RETURNING extract(epoch FROM run_at - clock_timestamp()) AS left"""
        row, _ = await self._one(statement, {"job": job, "fence": fence, "key": key, "seconds": seconds})
        if row is None:
            raise StaleFence(str(job))
        return None if row.left is None else float(row.left)

    async def take_signal(self, job: UUID, key: str, name: str) -> tuple[bool, Any]:
        """Take the oldest event of that name for this step: (whether there was one, its data). Taking again gives the same."""
        statement = """
            UPDATE jobs.signal SET taken_by = %(key)s WHERE id = (
                SELECT id FROM jobs.signal WHERE job_id = %(job)s AND name = %(name)s AND (taken_by IS NULL OR taken_by = %(key)s)
                 ORDER BY (taken_by = %(key)s) DESC NULLS LAST, id LIMIT 1 FOR UPDATE)
            RETURNING data"""
        row, _ = await self._one(statement, {"job": job, "key": key, "name": name})
        return (False, None) if row is None else (True, row.data)

    async def plan(self, job: UUID, fence: int, keys: list[str], titles: list[str], weights: list[float]) -> None:
        """Add pending steps, and tell readers. Those that are there already stay as they are."""
        statement = text("""
            WITH job AS (SELECT id FROM jobs.job WHERE id = :job AND fence = :fence FOR NO KEY UPDATE)
            INSERT INTO jobs.step (job_id, key, position, title, weight)
            SELECT job.id, key, coalesce((SELECT max(position) FROM jobs.step WHERE job_id = :job), 0) + position, title, weight
              FROM job, unnest(CAST(:keys AS text[]), CAST(:titles AS text[]), CAST(:weights AS float8[]))
                        WITH ORDINALITY AS s(key, title, weight, position)
            ON CONFLICT (job_id, key) DO NOTHING RETURNING key""")
        values = {"job": job, "fence": fence, "keys": keys, "titles": titles, "weights": weights}

        async def add() -> None:
            async with self._database.transaction() as session:
                if (await session.execute(statement, values)).all():
                    view, _ = await emit_job(session, job)
                    self._hub.publish_after_commit(session, job, view["workflow_id"])

        await patiently(add)

    async def _report(self, statement: LiteralString, values: dict[str, Any], state: str | None) -> None:
        row, again = await self._write(statement, values)
        if row is None and not ((again or self._repeats) and await self._was_written(values, state)):
            raise StaleFence(str(values["job"]))

    async def _was_written(self, values: dict[str, Any], state: str | None) -> bool:
        """Whether an earlier try did it: nobody but the fence's holder could have ended the attempt."""
        seen, _ = await self._one(_LOOK, {"job": values["job"], "key": values["key"]})
        return seen is not None and seen.fence == values["fence"] and seen.step_state == state and seen.token is None

    async def _write(self, statement: LiteralString, values: dict[str, Any]) -> tuple[Any, bool]:
        row, again = await self._one(statement, values)
        if row is not None:
            self._hub.publish(values["job"], row.topic)
        return row, again

    async def _one(self, statement: LiteralString, values: dict[str, Any]) -> tuple[Any, bool]:
        return await patiently(partial(self._lane.one, statement, values))
