"""Workflows by their id: shown, cancelled, retried, deleted, expired. A step is taken in `steps`."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.audit import service as audit
from services.app.context import AppContext
from services.app.db_problems import problem_of_constraint
from services.app.resources import Revisions, check_revision
from services.app.wizards import answers, files, repository
from services.app.wizards.access import check_may_change, check_may_read
from services.app.wizards.contract import Visit
from services.app.wizards.registry import WIZARDS
from services.app.wizards.repository import Locked, Standing
from services.app.wizards.tables import WorkflowRow
from shared.errors import Problem

EXPIRE_BATCH = 500


async def render(visit: Visit, workflow: WorkflowRow) -> dict[str, Any]:
    return await answers.render(visit.context, visit.session, workflow, visit.caller)


async def readable(visit: Visit, workflow_id: UUID) -> WorkflowRow:
    """Problem `not_found`, also for what the caller may not see."""
    workflow = await repository.get(visit.session, workflow_id)
    if workflow is None:
        raise Problem("not_found", "There is no such workflow.")
    check_may_read(visit.caller, workflow)
    return workflow


async def show(visit: Visit, workflow_id: UUID) -> dict[str, Any]:
    return await render(visit, await readable(visit, workflow_id))


async def has_ended(session: AsyncSession, workflow_id: UUID, seen: int) -> bool:
    """Whether nothing comes after the event `seen`: it was the last, and the workflow has ended or is gone."""
    row = (
        await session.execute(
            text("""SELECT t.seq, w.status FROM jobs.topic t LEFT JOIN platform.workflow w ON w.id = t.id
                     WHERE t.id = :id"""),
            {"id": workflow_id},
        )
    ).one_or_none()
    return row is None or (seen >= row.seq and row.status != "in_progress")


async def cancel(visit: Visit, workflow_id: UUID, revision: Revisions | None = None) -> dict[str, Any]:
    """Cancel a draft, or the job of a triggered workflow; may be repeated."""
    workflow = await _changeable(visit, workflow_id, revision)
    locked = await _locked_draft(visit, workflow)
    if locked is None:
        await _cancel_job(visit, workflow)
    elif locked.standing is Standing.DRAFT:
        await _end_draft(visit.context, visit.session, locked.workflow, None)
        await audit.record(visit.session, visit.caller, "workflow.cancel", "workflow", workflow_id)
    elif locked.standing is Standing.RUNNING:
        raise Problem("conflict", "The workflow has been triggered just now; cancel it again.")
    elif locked.standing is not Standing.CANCELLED:
        raise Problem("workflow_finished", f"The workflow has already ended: it is {locked.standing}.")
    return await show(visit, workflow_id)


async def _locked_draft(visit: Visit, workflow: WorkflowRow) -> Locked | None:
    """The workflow, locked, unless its job runs: a job is locked before its workflow."""
    seen = await repository.standing(visit.session, workflow)
    if seen is Standing.RUNNING:
        return None
    locked = await repository.lock(visit.session, workflow.id)
    if locked is None:
        raise Problem("not_found", "There is no such workflow.")
    return locked


async def _cancel_job(visit: Visit, workflow: WorkflowRow) -> None:
    assert workflow.job_id is not None
    await visit.context.ledger.cancel(visit.session, workflow.job_id)
    await audit.record(visit.session, visit.caller, "workflow.cancel", "workflow", workflow.id, job=workflow.job_id)


async def _end_draft(context: AppContext, session: AsyncSession, workflow: WorkflowRow, reason: str | None) -> None:
    moment = datetime.now(UTC)
    workflow.status, workflow.reason, workflow.ended_at, workflow.updated_at = "cancelled", reason, moment, moment
    workflow.files = files.without_content(workflow.files)
    workflow.revision += 1
    await session.flush()
    await emit_changed(context, session, workflow)


async def emit_changed(context: AppContext, session: AsyncSession, workflow: WorkflowRow) -> None:
    """Tell how a workflow is now; when it has ended, also that nothing follows."""
    shown = await answers.render(context, session, workflow)
    await context.ledger.emit_topic(session, workflow.id, "workflow", shown)
    if workflow.status != "in_progress":
        await context.ledger.emit_topic(session, workflow.id, "end", shown)


async def retry(visit: Visit, workflow_id: UUID, revision: Revisions | None = None) -> dict[str, Any]:
    """Run a failed workflow's job again from its failed step."""
    workflow = await _changeable(visit, workflow_id, revision)
    if workflow.status != "failed" or workflow.job_id is None:
        raise Problem("not_retryable", f"Only a failed workflow can be retried; this one is {workflow.status}.")
    try:
        async with visit.session.begin_nested():
            await visit.context.ledger.retry(visit.session, workflow.job_id, key_id=visit.caller.key_id)
            await visit.session.flush()
    except IntegrityError as error:
        raise problem_of_constraint(error) from error
    await audit.record(visit.session, visit.caller, "workflow.retry", "workflow", workflow_id, job=workflow.job_id)
    return await show(visit, workflow_id)


async def delete(visit: Visit, workflow_id: UUID, revision: Revisions | None = None) -> None:
    """Delete a draft; what has been triggered or cancelled stays as history."""
    await _changeable(visit, workflow_id, revision)
    locked = await repository.lock(visit.session, workflow_id)
    if locked is None:
        raise Problem("not_found", "There is no such workflow.")
    workflow = locked.workflow
    if workflow.job_id is not None or locked.standing is not Standing.DRAFT:
        raise Problem("not_a_draft", "Only a draft can be deleted; this workflow has been triggered, or has ended.")
    await _end_draft(visit.context, visit.session, workflow, "The draft was deleted.")  # for those who follow it
    await visit.session.delete(workflow)
    await audit.record(visit.session, visit.caller, "workflow.delete", "workflow", workflow_id)


async def _changeable(visit: Visit, workflow_id: UUID, revision: Revisions | None) -> WorkflowRow:
    workflow = await readable(visit, workflow_id)
    visit.caller.require("member")
    if workflow.job_id is None:
        check_may_change(visit.caller, workflow)
    else:
        visit.caller.require(WIZARDS[workflow.type].role)
        visit.caller.check_runs(workflow.project_id, workflow.owner_id, "workflow")
    check_revision(workflow, revision)
    return workflow


async def expire(context: AppContext, idle_days: int) -> int:
    """Cancel drafts that nobody has touched for so many days; returns how many."""
    async with context.database.transaction() as session:
        idle = await repository.idle_drafts(session, idle_days, EXPIRE_BATCH)
    return sum([await _expire_one(context, workflow_id, idle_days) for workflow_id in idle])


async def _expire_one(context: AppContext, workflow_id: UUID, idle_days: int) -> bool:
    async with context.database.transaction() as session:
        locked = await repository.lock(session, workflow_id)
        if locked is None or locked.standing is not Standing.DRAFT:
            return False
        if locked.workflow.updated_at > datetime.now(UTC) - timedelta(days=idle_days):
            return False  # somebody went on with it just now
        await _end_draft(context, session, locked.workflow, f"Nobody has touched the draft for {idle_days} days.")
        await audit.record(session, None, "workflow.expire", "workflow", workflow_id)
    return True
