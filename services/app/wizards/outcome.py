"""What a job's change means for its workflow; called by the ledger in the transaction of the change."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.app.context import AppContext
from services.app.wizards import answers, repository
from services.app.wizards.registry import WIZARDS
from services.app.wizards.tables import WorkflowRow
from shared.jobs.ledger import JobView

_STATUS = {"succeeded": "completed", "failed": "failed", "cleanup_required": "failed", "cancelled": "cancelled"}


class WorkflowHook:
    def __init__(self, context: AppContext) -> None:
        self._context = context

    async def __call__(self, session: AsyncSession, job: JobView, _input: dict[str, Any]) -> None:
        if job["workflow_id"] is None:
            return
        found = await repository.lock(session, UUID(job["workflow_id"]))
        if found is None or found[0].job_id != UUID(job["id"]):
            return  # the trigger itself tells of the new job
        workflow = found[0]
        status = _STATUS.get(job["state"], "in_progress")
        if status == workflow.status == "in_progress":
            return
        await self._settle(session, workflow, job, status)

    async def _settle(self, session: AsyncSession, workflow: WorkflowRow, job: JobView, status: str) -> None:
        wizard = WIZARDS[workflow.type]
        workflow.status = status
        workflow.reason = job["error"] if status == "failed" else None
        workflow.ended_at = None if status == "in_progress" else datetime.now(UTC)
        if status == "completed":
            workflow.current_step = workflow.total_steps
            workflow.result = await wizard.finish(session, workflow, job)
        if status in ("completed", "cancelled"):
            workflow.files = {name: {**file, "sealed": None} for name, file in workflow.files.items()}
        workflow.revision += 1
        workflow.updated_at = datetime.now(UTC)
        await session.flush()
        steps = dict(workflow.fields)
        message = f"The workflow is {status}." if status != "in_progress" else "The job runs again."
        data = await answers.compose(session, wizard, workflow, message, [], steps)
        ledger = self._context.ledger
        await ledger.emit_topic(session, workflow.id, "workflow", data)
        if status != "in_progress":
            await ledger.emit_topic(session, workflow.id, "end", {"status": status})
