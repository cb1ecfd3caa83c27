"""What a job's change means for its workflow; called by the ledger in the transaction of the change."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.app.context import AppContext
from services.app.wizards import files, repository
from services.app.wizards.registry import WIZARDS
from services.app.wizards.repository import Locked
from services.app.wizards.service import emit_changed
from services.app.wizards.tables import WorkflowRow
from shared.errors import Problem
from shared.jobs.ledger import JobView

_STATUS = {"succeeded": "completed", "failed": "failed", "cleanup_required": "failed", "cancelled": "cancelled"}


class WorkflowHook:
    """The workflow's status follows its job: what ends with it, and what a retry takes up again."""

    def __init__(self, context: AppContext) -> None:
        self._context = context

    async def __call__(self, session: AsyncSession, job: JobView, _input: dict[str, Any]) -> None:
        """Problem `not_retryable` when the workflow has been edited since its job failed."""
        if job["workflow_id"] is None or _says_nothing_new(job):
            return
        locked = await repository.lock(session, UUID(job["workflow_id"]))
        if locked is None:
            return
        is_its_job = locked.workflow.job_id == UUID(job["id"])
        if job["state"] == "pending":
            _check_retry(locked, is_its_job)
        status = _STATUS.get(job["state"], "in_progress")
        if is_its_job and status != locked.workflow.status:
            await self._settle(session, locked.workflow, job, status)

    async def _settle(self, session: AsyncSession, workflow: WorkflowRow, job: JobView, status: str) -> None:
        moment = datetime.now(UTC)
        workflow.status, workflow.updated_at = status, moment
        workflow.reason = reason_of(job) if job["error"] is not None and status in ("failed", "cancelled") else None
        workflow.ended_at = None if status == "in_progress" else moment
        if status == "completed":
            workflow.current_step = workflow.total_steps
            workflow.result = await WIZARDS[workflow.type].finish(session, workflow, job)
        if status in ("completed", "cancelled"):
            workflow.files = files.without_content(workflow.files)
        workflow.revision += 1
        await session.flush()
        await emit_changed(self._context, session, workflow)


def _says_nothing_new(job: JobView) -> bool:
    """The trigger itself tells of a new job, and a job that begins or waits changes nothing here."""
    return job["state"] in ("running", "waiting") or (job["state"] == "pending" and job["attempt"] == 1)


def _check_retry(locked: Locked, is_its_job: bool) -> None:
    if not is_its_job or locked.workflow.status != "failed":
        raise Problem("not_retryable", "The job's workflow has been edited since; trigger the workflow instead.")


def reason_of(job: JobView) -> str:
    """Why a job has failed, with the title of the step that did; the whole error is in the job."""
    error = job["error"] or {}
    title = next((step["title"] for step in job["steps"] if step["key"] == error.get("step")), None)
    message = error.get("message") or "The job has failed."
    return f"{title}: {message}" if title and not message.startswith(f"{title}: ") else str(message)
