"""Attempts of steps, as the ledger records them. Each change is one statement: the step, its event, its place in the order.

An attempt begins with the run's fence and gets a token; what it reports carries the token, and a stale one is refused.
Undo uses the same records: a step that was taken back is `undone` and has forgotten its result. Begins and ends are
written in groups (`shared.jobs.changes`), the rest one by one.
"""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, LiteralString
from uuid import UUID, uuid4

from shared.jobs.changes import Answer, Changes, with_events
from shared.jobs.hub import Hub
from shared.jobs.lane import Lane
from shared.jobs.ledger import StaleFence
from shared.jobs.stored import json_text, short_text


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


def _one_step(guard: LiteralString, change: LiteralString) -> LiteralString:
    return with_events(guard, f"changed AS ({change} RETURNING step.*, 1 AS place)")


_PROGRESS = _one_step(
    "true",
    """UPDATE jobs.step SET percent = %(percent)s, message = %(message)s FROM job
        WHERE step.job_id = job.id AND step.key = %(key)s AND step.token = %(token)s AND step.state = 'running'""",
)

_UNDONE = _one_step(
    "phase = 'undo'",
    """UPDATE jobs.step SET state = 'undone', result = NULL, token = NULL, error = NULL, run_at = NULL,
              percent = NULL, message = NULL, undo_tries = 0, ended_at = clock_timestamp()
         FROM job WHERE step.job_id = job.id AND step.key = %(key)s""",
)

_UNDO_FAILED = _one_step(
    "phase = 'undo'",
    """UPDATE jobs.step SET error = CAST(%(error)s AS jsonb), undo_tries = 0
         FROM job WHERE step.job_id = job.id AND step.key = %(key)s""",
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


class Attempts:
    """Where an engine begins and reports attempts. In a service without the database, the same calls go through the app.

    `repeats`: whoever calls may call again when an answer was lost, so what was written already is no fault.
    """

    def __init__(self, url: str, hub: Hub, *, repeats: bool = False) -> None:
        self._repeats = repeats
        self._hub = hub
        self._lane = Lane(url)
        self._changes = Changes(self._lane, hub)

    async def close(self) -> None:
        await self._changes.close()
        await self._lane.close()

    async def begin(self, job: UUID, fence: int, key: str, title: str, weight: float) -> Begun | Remembered:
        """Raises `CancelRequested` when the job is to be undone, `StaleFence` when it belongs to another process."""
        token = uuid4()
        change = {"key": key, "token": token, "state": "running", "title": title, "weight": weight}
        row, _ = await self._changes.add(job, fence, change)
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

    def succeed(self, job: UUID, fence: int, key: str, token: UUID, result: Any) -> Awaitable[None]:
        """Taken also from an attempt that ends while its job is being cancelled: the undo then knows the result.

        It will be recorded no later than what begins after this call; who awaits it knows that it has been.
        """
        return self._end(job, fence, {"key": key, "token": token, "state": "succeeded", "result": result})

    def fail(
        self,
        job: UUID,
        fence: int,
        key: str,
        token: UUID,
        error: dict[str, Any],
        *,
        state: str = "failed",
        after: float = 0,
    ) -> Awaitable[None]:
        """`state` is `failed`, `pending` (it will be tried again, `after` seconds) or `cancelled`."""
        return self._end(job, fence, {"key": key, "token": token, "state": state, "error": error, "after": after})

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
        rows, _ = await self._lane.patiently(statement, {"job": job})
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

    def _end(self, job: UUID, fence: int, change: dict[str, Any]) -> Awaitable[None]:
        return self._accepted(job, fence, change["key"], change["state"], self._changes.add(job, fence, change))

    async def _accepted(self, job: UUID, fence: int, key: str, state: str, told: Awaitable[Answer]) -> None:
        row, again = await told
        if row is None:
            await self._check_written({"job": job, "fence": fence, "key": key}, state, again)

    async def _report(self, statement: LiteralString, values: dict[str, Any], state: str | None) -> None:
        row, again = await self._one(statement, values)
        if row is None:
            await self._check_written(values, state, again)
        else:
            self._hub.publish(values["job"], row.topic)

    async def _check_written(self, values: dict[str, Any], state: str | None, again: bool) -> None:
        """An earlier try may have done it: nobody but the fence's holder could have ended the attempt."""
        if again or self._repeats:
            seen, _ = await self._one(_LOOK, {"job": values["job"], "key": values["key"]})
            if seen is not None and (seen.fence, seen.step_state, seen.token) == (values["fence"], state, None):
                return
        raise StaleFence(str(values["job"]))

    async def _one(self, statement: LiteralString, values: dict[str, Any]) -> tuple[Any, bool]:
        rows, again = await self._lane.patiently(statement, values)
        return (rows[0] if rows else None), again
