"""What the changes of an execution's job mean: its status, the end of its secret, the parent that waits for it, who is told.

`FlowOutcome` and `StatusAnnouncer` are the two halves of one `services.app.jobs.outcome.Outcome`.
"""

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.context import AppContext
from services.app.flows import executions, history, repository
from services.app.flows.executions import Found
from services.app.flows.orphans import ORPHANS
from services.app.flows.progress import OF_JOB
from services.app.flows.service import spoken
from shared.contracts.flows import child_event
from shared.errors import Problem
from shared.jobs.ledger import FINAL, JobView

log = structlog.get_logger(__name__)

_END = text("""
    WITH gone AS (DELETE FROM flow.secret WHERE id = :id), key AS (DELETE FROM platform.api_key WHERE job_id = :id)
    SELECT e.slug, e.parent, e.parent_task FROM flow.execution e JOIN jobs.job p ON p.id = e.parent
     WHERE e.id = :id AND p.state IN ('pending', 'running', 'waiting', 'cancelling')""")

_STATUS = text("""
    UPDATE flow.execution SET status = :status WHERE id = :id AND status <> :status
    RETURNING project_id, webhook_url""")


class FlowOutcome:
    """At the end the sealed key goes, in the same transaction, and a parent is told. See `orphans` for its children."""

    def __init__(self, context: AppContext) -> None:
        self._context = context

    async def __call__(self, session: AsyncSession, job: JobView, _spec: dict[str, Any]) -> None:
        if job["state"] not in FINAL:
            return
        if job["state"] != "succeeded":
            self._context.hub.publish_after_commit(session, ORPHANS)
        row = (await session.execute(_END, {"id": UUID(job["id"])})).one_or_none()
        if row is None:
            return
        with contextlib.suppress(Problem):  # it has ended just now, and looks at its children when it is retried
            await self._context.ledger.send_event(
                session, row.parent, child_event(row.parent_task), {"execution_id": row.slug}
            )


class ExecutionChange(NamedTuple):
    """An execution's new status. `view` gives its public view, and is asked only when somebody wants it."""

    id: UUID
    project_id: UUID
    status: str
    webhook_url: str | None
    view: Callable[[], Awaitable[dict[str, Any]]]


Listener = Callable[[AppContext, AsyncSession, ExecutionChange], Awaitable[None]]


class StatusAnnouncer:
    """Writes the status down, and tells the listeners of each change, once. It must not keep the job from ending."""

    def __init__(self, context: AppContext, listeners: Sequence[Listener] = ()) -> None:
        self._context = context
        self._listeners = listeners

    async def __call__(self, session: AsyncSession, job: JobView, _spec: dict[str, Any]) -> None:
        if job["state"] in ("waiting", "cancelling"):
            return  # on the way, as before
        job_id, status = UUID(job["id"]), OF_JOB[job["state"]]
        row = (await session.execute(_STATUS, {"id": job_id, "status": status})).one_or_none()
        if row is None:
            return

        async def view() -> dict[str, Any]:
            return await _view(self._context, session, job)

        change = ExecutionChange(job_id, row.project_id, status, row.webhook_url, view)
        for listener in self._listeners:
            await self._tell(session, listener, change)

    async def _tell(self, session: AsyncSession, listener: Listener, change: ExecutionChange) -> None:
        try:
            async with session.begin_nested():
                await listener(self._context, session, change)
        except (OperationalError, InterfaceError):  # the database is away: the engine waits for it
            raise
        except Exception:
            log.exception("execution_not_announced", execution=str(change.id), status=change.status)


async def _view(context: AppContext, session: AsyncSession, job: JobView) -> dict[str, Any]:
    execution = await history.get(session, UUID(job["id"]))
    assert execution is not None
    flow = await repository.get(session, execution.flow_id)
    assert flow is not None
    return await executions.view(context, session, Found(flow, execution), spoken(flow), job)
