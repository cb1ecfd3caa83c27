"""The routes of the ledger: list, show, follow, cancel and retry jobs."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic_core import to_json
from sqlalchemy.exc import IntegrityError

from services.app.audit import service as audit
from services.app.context import Context, Session
from services.app.db_problems import problem_of_constraint
from services.app.identity.authenticate import Authenticated
from services.app.identity.idempotency import Once
from services.app.jobs import following, repository
from services.app.resources import Among, FilterText
from shared.errors import Fault
from shared.http.pages import PageParams
from shared.http.problems import query_problem
from shared.jobs.tables import JOB_STATES

router = APIRouter(prefix="/jobs", tags=["jobs"])
JSON = "application/json"


def _answer(body: dict[str, Any]) -> Response:
    return Response(to_json(body), media_type=JSON)


@router.get("")
async def list_jobs(
    context: Context,
    session: Session,
    caller: Authenticated,
    query: PageParams,
    kind: Annotated[FilterText | None, Query()] = None,
    state: Annotated[Annotated[str, Among(JOB_STATES)] | None, Query()] = None,
    project_id: Annotated[UUID | None, Query()] = None,
    workflow_id: Annotated[UUID | None, Query()] = None,
    resource_id: Annotated[UUID | None, Query()] = None,
) -> Response:
    """Lists jobs: one's own and those of one's projects."""
    if kind is not None and kind not in context.ledger.hooks:
        known = ", ".join(sorted(context.ledger.hooks))
        raise query_problem([Fault("kind", "not_allowed", f"must be one of {known}")])
    filters = {
        "kind": kind, "state": state, "project_id": project_id, "topic": workflow_id, "resource_id": resource_id,
    }  # fmt: skip
    return _answer(await repository.page(session, caller, filters, query))


@router.get("/{job_id}")
async def show_job(
    request: Request,
    job_id: UUID,
    context: Context,
    caller: Authenticated,
    wait: Annotated[float, Query(ge=0, le=60)] = 0,
) -> Response:
    """Shows a job; `wait=30` answers at its end, or after 30 s."""
    return _answer(await following.awaited(request, context, caller, job_id, wait))


@router.get("/{job_id}/events")
async def follow_job(request: Request, job_id: UUID, context: Context, caller: Authenticated) -> Response:
    """Server-sent events of a job and its steps, numbered without gaps; the stream ends with the job.

    Resumes after Last-Event-ID; one that is beyond the newest event replays all.
    """
    return await following.follow(request, context, caller, job_id)


@router.post("/{job_id}/cancel")
async def cancel_job(job_id: UUID, context: Context, caller: Authenticated, once: Once) -> Response:
    """Stops a job and undoes what it did. May be repeated; a finished job is 409."""

    async def work() -> Response:
        async with context.database.transaction() as session:
            await repository.changeable(session, caller, job_id)
            shown = await context.ledger.cancel(session, job_id)
            await audit.record(session, caller, "job.cancel", "job", job_id, kind=shown["kind"])
        return _answer(shown)

    return await once.run("", work)


@router.post("/{job_id}/retry")
async def retry_job(job_id: UUID, context: Context, caller: Authenticated, once: Once) -> Response:
    """Runs a failed job again from its failed step; a failed undo from where it stopped."""

    async def work() -> Response:
        try:
            async with context.database.transaction() as session:
                await repository.changeable(session, caller, job_id)
                shown = await context.ledger.retry(session, job_id, key_id=caller.key_id)
                await audit.record(session, caller, "job.retry", "job", job_id, kind=shown["kind"])
        except IntegrityError as error:
            raise problem_of_constraint(error) from error
        return _answer(shown)

    return await once.run("", work)
