"""The routes of workflow servers and their runs."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import AwareDatetime
from pydantic_core import to_json

from services.app.context import Context, Session
from services.app.identity.authenticate import Authenticated
from services.app.resources import JSON, Among, FilterText, answer
from services.app.workflow_servers import service
from services.app.workflow_servers.repository import Filters
from services.app.workflow_servers.schemas import ReportIn, ServerIn
from services.app.workflow_servers.tables import STATES, STATUSES
from shared.http.bodies import StrictRoute
from shared.http.pages import PageParams

router = APIRouter(tags=["workflow servers"], route_class=StrictRoute)
ONE = "/workflow-servers/{server_id}"


@router.get("/workflow-servers")
async def list_workflow_servers(
    session: Session,
    caller: Authenticated,
    query: PageParams,
    project_id: Annotated[UUID | None, Query()] = None,
    state: Annotated[Annotated[str, Among(STATES)] | None, Query()] = None,
    name: Annotated[FilterText | None, Query()] = None,
) -> dict[str, Any]:
    """Lists the workflow servers of one's projects. One that has not reported for 30 seconds is `offline`."""
    return await service.page(session, caller, project_id, state, name, query)


@router.post("/workflow-servers", status_code=201)
async def register_workflow_server(
    body: ServerIn, context: Context, session: Session, caller: Authenticated
) -> Response:
    """Registers a workflow server, as `stepway serve` does by itself. May be repeated: 200 for one that is known."""
    view, is_new = await service.register(session, context, caller, body)
    made = answer(view, 201 if is_new else 200)
    made.headers["Location"] = f"/workflow-servers/{view['id']}"
    return made


@router.get(ONE)
async def show_workflow_server(server_id: UUID, session: Session, caller: Authenticated) -> Response:
    """Shows a workflow server."""
    return answer(await service.show(session, caller, server_id))


@router.delete(ONE, status_code=204)
async def forget_workflow_server(server_id: UUID, session: Session, caller: Authenticated) -> None:
    """Forgets a workflow server and its runs. One that still reports registers again."""
    await service.forget(session, caller, server_id)


@router.get(ONE + "/workflows")
async def list_served_workflows(
    server_id: UUID, session: Session, caller: Authenticated, query: PageParams
) -> dict[str, Any]:
    """Lists what a workflow server serves: what a run starts with, and the events that may be sent to it."""
    return await service.workflows(session, caller, server_id, query)


@router.post(ONE + "/report")
async def report_workflow_runs(
    server_id: UUID, body: ReportIn, context: Context, session: Session, caller: Authenticated
) -> dict[str, Any]:
    """Takes from a workflow server how its runs are; answers with what is asked of it. May be repeated."""
    return await service.report(session, context, caller, server_id, body)


@router.get("/workflow-runs")
async def list_workflow_runs(
    session: Session,
    caller: Authenticated,
    query: PageParams,
    project_id: Annotated[UUID | None, Query()] = None,
    server_id: Annotated[UUID | None, Query()] = None,
    workflow: Annotated[FilterText | None, Query()] = None,
    handler_id: Annotated[FilterText | None, Query()] = None,
    status: Annotated[Annotated[str, Among(STATUSES)] | None, Query()] = None,
    started_by: Annotated[UUID | None, Query()] = None,
    since: Annotated[AwareDatetime | None, Query(description="Started at or after this time.")] = None,
    until: Annotated[AwareDatetime | None, Query(description="Started before this time.")] = None,
) -> dict[str, Any]:
    """Lists runs of workflow servers, the newest first, as their servers have told them."""
    filters = Filters(project_id, server_id, workflow, handler_id, status, started_by, since, until)
    return await service.runs(session, caller, filters, query)


@router.get("/workflow-runs/{run_id}")
async def show_workflow_run(run_id: UUID, session: Session, caller: Authenticated) -> dict[str, Any]:
    """Shows a run of a workflow server; what it takes and gives stays on the server."""
    return await service.show_run(session, caller, run_id)


@router.post("/workflow-runs/{run_id}/cancel", status_code=202)
async def cancel_workflow_run(run_id: UUID, session: Session, caller: Authenticated) -> Response:
    """Asks the run's server to cancel it: it hears of it at its next report, or when it is back. 409 for one that has ended.

    The run is `cancelled` when the server says so.
    """
    return Response(to_json(await service.cancel(session, caller, run_id)), 202, media_type=JSON)
