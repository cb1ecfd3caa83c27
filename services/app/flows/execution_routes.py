"""The routes of executions: started, followed, answered, cancelled, run again, deleted; their tasks and files."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic_core import to_json
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.context import AppContext, Context, Session
from services.app.flows import definitions, executions, history, service, views
from services.app.flows.bodies import ANSWER, ORDER, Dialect, ProviderKey, body_if_any, described
from services.app.flows.downloads import download
from services.app.flows.executions import Found
from services.app.flows.tables import STATUSES
from services.app.identity.authenticate import Authenticated
from services.app.identity.caller import Caller
from services.app.identity.idempotency import Once, OnceGuard
from services.app.jobs import following
from services.app.models import holdings
from services.app.resources import Among, check_project
from shared.errors import Problem
from shared.flows.dialects.words import DialectName
from shared.http.bodies import fingerprint_of
from shared.http.pages import PageParams

router = APIRouter(prefix="/flow", tags=["executions"])
JSON = "application/json"
ONE = "/workflows/{workflow_id}/executions/{execution_id}"
Status = Annotated[Annotated[str, Among(STATUSES)] | None, Query()]
EventName = Annotated[str, Path(pattern=r"^[^:/\x00-\x1f]{1,64}$")]
TaskName = Annotated[str, Path(max_length=80)]


async def _found(context: AppContext, caller: Caller, workflow_id: str, execution_id: str) -> Found:
    async with context.database.transaction() as session:
        return await executions.find(session, caller, workflow_id, execution_id)


# ---- started


async def _start(
    request: Request,
    context: AppContext,
    caller: Caller,
    once: OnceGuard,
    workflow_id: str,
    otherwise: DialectName,
    provider_key: str | None,
) -> Response:
    body = await body_if_any(request)

    async def work() -> Response:
        order = definitions.read_order(body, otherwise)
        async with context.database.transaction() as session:
            found = await executions.start(context, session, caller, workflow_id, order, provider_key)
        shown = views.started(found.flow, found.execution, order.dialect)
        place = f"/flow/workflows/{found.flow.slug}/executions/{found.execution.slug}"
        return Response(to_json(shown), 202, {"Location": place}, JSON)

    return await once.run(fingerprint_of(request), work)


@router.post("/workflows/{workflow_id}/execute", status_code=202, openapi_extra=described(ORDER, required=False))
async def execute_flow(
    request: Request, workflow_id: str, context: Context, caller: Authenticated, once: Once, provider_key: ProviderKey
) -> Response:
    """Starts an execution of the current version of a workflow, with its inputs; `webhook_url` is told of its statuses."""
    return await _start(request, context, caller, once, workflow_id, "refs", provider_key)


@router.post("/workflows/{workflow_id}/executions", status_code=202, openapi_extra=described(ORDER, required=False))
async def start_execution(
    request: Request, workflow_id: str, context: Context, caller: Authenticated, once: Once, provider_key: ProviderKey
) -> Response:
    """The same as `/execute`; both take the bodies of both ways of writing."""
    return await _start(request, context, caller, once, workflow_id, "tasks", provider_key)


# ---- looked at


@router.get("/workflows/{workflow_id}/executions")
async def list_flow_executions(
    workflow_id: str, session: Session, caller: Authenticated, query: PageParams, status: Status = None,
    dialect: Dialect = None,
) -> dict[str, Any]:  # fmt: skip
    """Lists the executions of a workflow, the newest first."""
    flow = await service.found(session, caller, workflow_id, deleted=True)
    page = await history.page(session, caller, {"flow_id": flow.id, "status": status}, query)
    return executions.envelope(page, dialect, whole=False)


@router.get("/executions")
async def list_executions(
    session: Session, caller: Authenticated, query: PageParams, status: Status = None,
    project_id: Annotated[UUID | None, Query()] = None, dialect: Dialect = None,
) -> dict[str, Any]:  # fmt: skip
    """Lists the executions of all workflows of a project, or of all of one's projects."""
    await check_project(session, caller, project_id)
    page = await history.page(session, caller, {"project_id": project_id, "status": status}, query)
    return executions.envelope(page, dialect, whole=True)


@router.get(ONE)
async def show_execution(
    request: Request, workflow_id: str, execution_id: str, context: Context, caller: Authenticated,
    wait: Annotated[float, Query(ge=0, le=60)] = 0, dialect: Dialect = None,
) -> dict[str, Any]:  # fmt: skip
    """Shows an execution with the status of each task; `wait=30` answers at its end, or after 30 s."""
    found = await _found(context, caller, workflow_id, execution_id)
    job = await following.awaited(request, context, caller, found.execution.id, wait) if wait else None
    async with context.database.transaction() as session:
        return await executions.view(context, session, found, dialect or service.spoken(found.flow), job)


@router.get(f"{ONE}/events")
async def follow_execution(
    request: Request, workflow_id: str, execution_id: str, context: Context, caller: Authenticated
) -> Response:
    """Server-sent events of an execution: those of its job, and of a step for each task. Resumes after Last-Event-ID."""
    found = await _found(context, caller, workflow_id, execution_id)
    return await following.follow(request, context, caller, found.execution.id)


@router.get(f"{ONE}/tasks/{{task}}")
async def show_task(
    workflow_id: str, execution_id: str, task: TaskName, context: Context, session: Session, caller: Authenticated,
    dialect: Dialect = None,
) -> dict[str, Any]:  # fmt: skip
    """Shows one task: what it took and gave, its attempts, times and error. `name[3]` is an item of a loop."""
    found = await executions.find(session, caller, workflow_id, execution_id)
    return await executions.task_view(context, session, found, task, dialect or service.spoken(found.flow))


@router.get(f"{ONE}/artifacts/{{artifact_id}}", response_class=Response)
async def download_artifact(
    request: Request, workflow_id: str, execution_id: str, artifact_id: UUID, context: Context, caller: Authenticated
) -> Response:
    """Sends a file of an execution, or a `Range` of it."""
    async with context.database.transaction() as session:
        found = await executions.find(session, caller, workflow_id, execution_id)
        artifact = await history.artifact(session, artifact_id, found.execution.project_id)
    if artifact is None or artifact.execution_id != found.execution.id:
        raise Problem("not_found", "The execution has no such file.")
    return await download(request, context, caller, artifact)


# ---- changed


async def _shown(context: AppContext, session: AsyncSession, found: Found, dialect: DialectName | None) -> Response:
    body = await executions.view(context, session, found, dialect or service.spoken(found.flow))
    return Response(to_json(body), media_type=JSON)


@router.post(f"{ONE}/cancel")
async def cancel_execution(
    workflow_id: str, execution_id: str, context: Context, caller: Authenticated, once: Once, dialect: Dialect = None
) -> Response:
    """Stops an execution. May be repeated; one that has ended is 409."""

    async def work() -> Response:
        async with context.database.transaction() as session:
            found = await executions.find(session, caller, workflow_id, execution_id)
            await executions.cancel(context, session, caller, found)
            return await _shown(context, session, found, dialect)

    return await once.run("", work)


@router.post(f"{ONE}/retry")
async def retry_execution(
    workflow_id: str, execution_id: str, context: Context, caller: Authenticated, once: Once, provider_key: ProviderKey,
    dialect: Dialect = None,
) -> Response:  # fmt: skip
    """Runs a failed execution again from its failed task; those that are done keep what they gave."""

    async def work() -> Response:
        async with context.database.transaction() as session:
            found = await executions.find(session, caller, workflow_id, execution_id)
            await executions.retry(context, session, caller, found, provider_key)
            return await _shown(context, session, found, dialect)

    return await once.run("", work)


@router.post(f"{ONE}/events/{{name}}", openapi_extra=described(ANSWER))
async def send_event(
    request: Request, workflow_id: str, execution_id: str, name: EventName, context: Context, caller: Authenticated,
    once: Once, dialect: Dialect = None,
) -> Response:  # fmt: skip
    """Gives an execution the event that a task waits for, or will; the body is its data. 409 when it has ended."""
    data = await body_if_any(request)

    async def work() -> Response:
        async with context.database.transaction() as session:
            found = await executions.find(session, caller, workflow_id, execution_id)
            await executions.answer(context, session, caller, found, name, data)
            return await _shown(context, session, found, dialect)

    return await once.run(fingerprint_of(request), work)


@router.delete(ONE, status_code=204)
async def delete_execution(workflow_id: str, execution_id: str, context: Context, caller: Authenticated) -> None:
    """Forgets an execution that has ended, with its files."""
    async with context.database.transaction() as session:
        found = await executions.find(session, caller, workflow_id, execution_id)
        blobs = await executions.delete(context, session, caller, found)
    await holdings.free(context, blobs)
