"""The routes of flows, all under `/flow`: definitions and task types. `execution_routes` has those of executions."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic_core import to_json

from services.app.context import Context, Session
from services.app.flows import service, views
from services.app.flows.bodies import CHANGE, DEFINITION, Dialect, described
from services.app.identity.authenticate import Authenticated
from services.app.identity.idempotency import Once
from services.app.resources import Expected, answer, listed
from shared.errors import Problem
from shared.flows.task_types import find
from shared.http.bodies import fingerprint_of, read_json
from shared.http.pages import PageParams

router = APIRouter(prefix="/flow", tags=["flows"])
JSON = "application/json"
ProjectId = Annotated[UUID | None, Query()]
Number = Annotated[int, Path(ge=1, le=2_000_000_000)]


@router.get("/task-types")
async def list_task_types(context: Context, _caller: Authenticated, query: PageParams) -> dict[str, Any]:
    """Lists what a task of a workflow may be: what it takes, what it gives."""
    kinds = sorted(context.task_types.values(), key=lambda kind: kind.name)
    return listed([views.task_type_view(kind) for kind in kinds], query, "name", "title")


@router.get("/task-types/{name}")
async def show_task_type(name: str, context: Context, _caller: Authenticated) -> dict[str, Any]:
    """Shows one type of task, in whatever spelling."""
    kind = find(context.task_types, name[:128])
    if kind is None:
        raise Problem("not_found", "There is no such task type.")
    return views.task_type_view(kind)


@router.get("/workflows")
async def list_flows(
    session: Session, caller: Authenticated, query: PageParams, project_id: ProjectId = None
) -> dict[str, Any]:
    """Lists the workflows of one's projects."""
    return await service.page(session, caller, project_id, query)


@router.post("/workflows", status_code=201, openapi_extra=described(DEFINITION))
async def create_flow(
    request: Request, context: Context, caller: Authenticated, once: Once, project_id: ProjectId = None
) -> Response:
    """Makes a workflow of a definition, in either way of writing; nothing runs yet.

    Its project is the one that is named, else one's only one, else the one named `default`.
    """
    body = await read_json(request)

    async def work() -> Response:
        async with context.database.transaction() as session:
            flow = await service.create(context, session, caller, body, project_id)
        made = {"workflow_id": flow.slug, "workflow_version": flow.version}
        headers = {"Location": f"/flow/workflows/{flow.slug}", "ETag": f'"{flow.revision}"'}
        return Response(to_json(made), 201, headers, JSON)

    return await once.run(fingerprint_of(request), work)


@router.put("/workflows", openapi_extra=described(CHANGE))
async def apply_flow(
    request: Request, context: Context, caller: Authenticated, project_id: ProjectId = None
) -> Response:
    """Makes a workflow of a definition, or a new version of the one that has its name in the project.

    May be repeated, and by several at a time: they make one. `result` is created (201), changed or unchanged.
    """
    body = await read_json(request)
    async with context.database.transaction() as session:
        result, view = await service.apply(context, session, caller, body, project_id)
    answered = answer({"result": result, **view}, 201 if result == "created" else 200)
    answered.headers["Location"] = f"/flow/workflows/{view['workflow_id']}"
    return answered


@router.post("/workflows/validate", openapi_extra=described(DEFINITION))
async def validate_flow(request: Request, context: Context, _caller: Authenticated) -> dict[str, Any]:
    """Says what is wrong with a definition, as its creation would; keeps nothing."""
    return {"valid": True, "dialect": service.validate(context, await read_json(request))}


@router.get("/workflows/{workflow_id}")
async def show_flow(workflow_id: str, session: Session, caller: Authenticated, dialect: Dialect = None) -> Response:
    """Shows a workflow with the definition of its current version."""
    return answer(await service.show(session, caller, workflow_id, dialect))


@router.put("/workflows/{workflow_id}", openapi_extra=described(CHANGE))
async def change_flow(
    request: Request, workflow_id: str, context: Context, caller: Authenticated, expected: Expected
) -> Response:
    """Makes a new version of a workflow; `expected_version` guards it. An equal definition makes none.

    Executions go on with the version that they were started with.
    """
    body = await read_json(request)
    async with context.database.transaction() as session:
        return answer(await service.change(context, session, caller, workflow_id, body, expected))


@router.delete("/workflows/{workflow_id}", status_code=204)
async def delete_flow(workflow_id: str, session: Session, caller: Authenticated, expected: Expected) -> None:
    """Deletes a workflow of which nothing runs; its executions stay until they are forgotten."""
    await service.delete(session, caller, workflow_id, expected)


@router.get("/workflows/{workflow_id}/versions")
async def list_flow_versions(
    workflow_id: str, session: Session, caller: Authenticated, query: PageParams
) -> dict[str, Any]:
    """Lists the versions of a workflow, the newest first."""
    return await service.versions(session, caller, workflow_id, query)


@router.get("/workflows/{workflow_id}/versions/{number}")
async def show_flow_version(
    workflow_id: str, number: Number, session: Session, caller: Authenticated, dialect: Dialect = None
) -> dict[str, Any]:
    """Shows one version of a workflow with its definition."""
    return await service.show_version(session, caller, workflow_id, number, dialect)
