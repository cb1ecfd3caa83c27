"""What a job's change means for our rows, so guarded that no fault of ours can keep a job from ending.

The hook of the resource and that of the workflow run in the transaction of the change. What they raise at a person's
request (a trigger, a retry, a cancel) refuses the request. What they raise at the job's end would roll the end back, and
the engine would try it again for ever: so a success that cannot be recorded becomes a failure that says so, and any other
end stands without what could not be recorded.
"""

from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from shared.jobs.ledger import FINAL, Hook, JobView, Ledger
from shared.jobs.stored import json_text

log = structlog.get_logger(__name__)


class Outcome:
    """The hook of one kind of job: at its end first the resource's, whose row the workflow's result is made of.

    `announcer` tells those who asked to hear of it, of every state that holds; it raises nothing of its own.
    """

    def __init__(self, ledger: Ledger, resource: Hook, workflow: Hook, announcer: Hook | None = None) -> None:
        self._ledger = ledger
        self._hooks = (resource, workflow)
        self._announcer = announcer

    async def __call__(self, session: AsyncSession, job: JobView, spec: dict[str, Any]) -> None:
        if job["state"] in ("running", "waiting"):
            pass  # means nothing for any row, and comes often
        elif job["state"] not in FINAL:
            for hook in reversed(self._hooks):  # whether the workflow allows it comes before what it would do
                await hook(session, job, spec)
        elif job["state"] == "succeeded":
            if not await self._succeeded(session, job, spec):
                return
        else:
            for hook in self._hooks:
                await self._attempt(session, hook, job, spec)
        if self._announcer is not None:
            await self._announcer(session, job, spec)

    async def _succeeded(self, session: AsyncSession, job: JobView, spec: dict[str, Any]) -> bool:
        """Whether it stays a success."""
        for hook in self._hooks:
            error = await self._attempt(session, hook, job, spec)
            if error is not None:
                body = {"code": "internal", "message": f"The result could not be recorded ({error}).", "step": None}
                await session.execute(_FORGET_LAST, {"job": UUID(job["id"])})
                await self._ledger.transition(
                    session, UUID(job["id"]), "failed",
                    set_="result = NULL, error = CAST(:error AS jsonb)", values={"error": json_text(body)},
                )  # fmt: skip
                return False
        return True

    async def _attempt(self, session: AsyncSession, hook: Hook, job: JobView, spec: dict[str, Any]) -> str | None:
        """Run a hook in a savepoint; what went wrong, in a word. A database that is away is the engine's to wait for."""
        try:
            async with session.begin_nested():
                await hook(session, job, spec)
                await session.flush()
        except (OperationalError, InterfaceError):
            raise
        except Exception as error:  # see above: it must not keep the job from ending
            log.exception("outcome_failed", job=job["id"], kind=job["kind"], state=job["state"])
            return type(error).__name__
        return None


# A retry begins at the first step without a result: the last step makes it anew.
_FORGET_LAST = text("""
    UPDATE jobs.step SET state = 'failed', result = NULL, ended_at = clock_timestamp()
     WHERE job_id = :job AND state = 'succeeded'
       AND position = (SELECT max(position) FROM jobs.step WHERE job_id = :job AND state = 'succeeded')""")
