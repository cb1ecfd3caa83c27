"""How a run ends, as the ledger records it: with a result, a failure, in a wait, or with what was done taken back.

Every engine ends its runs through these. A run that has ended is not ended again: its fence is refused (`StaleFence`).
"""

from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from shared.db.engine import Database
from shared.jobs.attempts import CancelRequested
from shared.jobs.claims import OVERDUE
from shared.jobs.driver import describe, error_body
from shared.jobs.ledger import REVOKED, Ledger, StaleFence
from shared.jobs.run import StepFailed
from shared.jobs.stored import json_text
from shared.telemetry.work import run_ends

log = structlog.get_logger(__name__)

_PARKED = """worker = NULL, run_at = CASE
    WHEN EXISTS (SELECT 1 FROM jobs.signal s WHERE s.job_id = :job AND s.taken_by IS NULL AND s.name = ANY(:names))
    THEN clock_timestamp()
    ELSE least(coalesce(clock_timestamp() + make_interval(secs => :seconds), 'infinity'), deadline) END"""


class Overdue(Exception):
    """The job is past its deadline."""


class Endings:
    """Forward endings raise `CancelRequested` when the job is to be undone by now."""

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._database = database
        self._ledger = ledger

    async def succeed(self, job: UUID, fence: int, result: Any) -> None:
        await self._forward(job, fence, "succeeded", "result = CAST(:result AS jsonb)", result=json_text(result))

    async def fail(self, job: UUID, fence: int, error: dict[str, Any], *, undo: bool) -> None:
        """`undo`: what was done is taken back first; the run goes on, in its undo phase."""
        changes = "error = CAST(:error AS jsonb)" + (", phase = 'undo'" if undo else "")
        await self._forward(job, fence, "running" if undo else "failed", changes, error=json_text(error))

    async def park(self, job: UUID, fence: int, seconds: float | None, names: list[str]) -> None:
        """The run waits, in nobody's hands: for `seconds` (None: for ever), or for one of the named events."""
        async with self._database.transaction() as session:
            # The lock comes first: an event that is sent just now is either seen here, or wakes the parked run.
            await session.execute(text("SELECT 1 FROM jobs.job WHERE id = :id FOR UPDATE"), {"id": job})
            await self._change(session, job, fence, "waiting", _PARKED, {"names": names, "seconds": seconds})

    async def undone(self, job: UUID, fence: int, left: list[dict[str, Any]], failure: dict[str, Any] | None) -> None:
        """A failure that led to the undo stays the job's error; without one it was cancelled. `left`: what is not undone."""
        async with self._database.transaction() as session:
            statement = text("""SELECT cancel_requested_at IS NOT NULL AS asked, error->>'code' AS code, error
                                  FROM jobs.job WHERE id = :id FOR UPDATE""")
            row = (await session.execute(statement, {"id": job})).one_or_none()
            if row is None:
                raise StaleFence(str(job))
            reason = row.error if row.code == REVOKED else None
            state, error = ("cancelled", reason) if row.asked else ("failed", failure)
            if left:
                cause = failure or left[0]["cause"]
                state, error = "cleanup_required", {**left[0], "left": [one["step"] for one in left], "cause": cause}
            await self._ledger.transition(
                session, job, state, fence=fence,
                set_="error = CAST(:error AS jsonb)", values={"error": json_text(error) if error else None},
            )  # fmt: skip
        run_ends(state)

    async def _forward(self, job: UUID, fence: int, state: str, changes: str, **values: Any) -> None:
        async with self._database.transaction() as session:
            await self._change(session, job, fence, state, changes, values)

    async def _change(
        self, session: AsyncSession, job: UUID, fence: int, state: str, changes: str, values: dict[str, Any]
    ) -> None:
        try:
            await self._ledger.transition(session, job, state, fence=fence, forward=True, set_=changes, values=values)
        except StaleFence:
            statement = text("""
                SELECT 1 FROM jobs.job WHERE id = :id AND fence = :fence AND phase = 'undo' AND worker IS NOT NULL""")
            if (await session.execute(statement, {"id": job, "fence": fence})).one_or_none() is None:
                raise
            raise CancelRequested(str(job)) from None
        run_ends(state)


def first_failure(error: dict[str, Any] | None) -> dict[str, Any] | None:
    """What led to the undo: the cause that a failed undo of before has kept, or the error itself."""
    if error is not None and error["code"] == "undo_failed":
        return error["cause"] if isinstance(error.get("cause"), dict) else None
    return error


def failure_of(job_id: UUID, kind: str, error: BaseException) -> dict[str, Any]:
    """What a run's failure is told as."""
    if isinstance(error, StepFailed):
        return error_body(error.code, error.message, error.key)
    if isinstance(error, Overdue):
        return error_body("deadline_exceeded", OVERDUE, None)
    code, message = describe(error)
    if code == "internal":
        log.error("job_fault", job=str(job_id), kind=kind, exc_info=error)
    return error_body(code, message, None)
