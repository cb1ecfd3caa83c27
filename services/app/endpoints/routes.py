"""The routes of endpoints and their workers. What they serve, `/endpoints/{id}/v1`, is the gateway's."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse

from services.app.context import Context, Session
from services.app.endpoints import change, events, repository, scale, service
from services.app.endpoints.change import EndpointChange
from services.app.endpoints.tables import ENDPOINT_STATES, EndpointRow
from services.app.identity.authenticate import Authenticated
from services.app.resources import Among, Expected, FilterText, listed
from services.app.streams import open_text
from services.app.wizards.contract import Visit
from shared.errors import Problem
from shared.http.bodies import StrictRoute
from shared.http.pages import PageParams

router = APIRouter(prefix="/endpoints", tags=["endpoints"], route_class=StrictRoute)


@router.get("")
async def list_endpoints(
    session: Session,
    caller: Authenticated,
    query: PageParams,
    project_id: Annotated[UUID | None, Query()] = None,
    model_id: Annotated[UUID | None, Query()] = None,
    cluster_id: Annotated[UUID | None, Query()] = None,
    state: Annotated[Annotated[str, Among(ENDPOINT_STATES)] | None, Query()] = None,
    name: Annotated[FilterText | None, Query()] = None,
) -> dict[str, Any]:
    """Lists endpoints."""
    filters = {"project_id": project_id, "model_id": model_id, "cluster_id": cluster_id, "state": state, "name": name}
    return (await repository.page(session, caller, filters, query)).envelope(service.view)


@router.get("/{endpoint_id}")
async def show_endpoint(
    endpoint_id: UUID, session: Session, caller: Authenticated, response: Response
) -> dict[str, Any]:
    """Shows an endpoint."""
    endpoint = await service.visible(session, caller, endpoint_id)
    response.headers["ETag"] = f'"{endpoint.revision}"'
    return service.view(endpoint)


@router.patch("/{endpoint_id}", status_code=202)
async def change_endpoint(
    endpoint_id: UUID,
    body: EndpointChange,
    context: Context,
    session: Session,
    caller: Authenticated,
    expected: Expected,
) -> dict[str, Any]:
    """Begins to serve another model or configuration, worker by worker, or to have more or fewer; the answer is the job.

    A change that fails is taken back by itself.
    """
    return await change.change(Visit(context, session, caller), endpoint_id, body, expected)


@router.post("/{endpoint_id}/stop", status_code=202)
async def stop_endpoint(endpoint_id: UUID, context: Context, session: Session, caller: Authenticated) -> dict[str, Any]:
    """Begins to stop all workers and keeps the endpoint; the answer is the job."""
    return await scale.stop(Visit(context, session, caller), endpoint_id)


@router.post("/{endpoint_id}/start", status_code=202)
async def start_endpoint(
    endpoint_id: UUID, context: Context, session: Session, caller: Authenticated
) -> dict[str, Any]:
    """Begins to start the workers of a stopped endpoint again; the answer is the job."""
    return await scale.start(Visit(context, session, caller), endpoint_id)


@router.delete("/{endpoint_id}", status_code=202)
async def delete_endpoint(
    endpoint_id: UUID, context: Context, session: Session, caller: Authenticated, expected: Expected
) -> dict[str, Any]:
    """Begins to delete an endpoint with all its workers; the answer is the job."""
    return await service.delete(Visit(context, session, caller), endpoint_id, expected)


@router.get("/{endpoint_id}/workers")
async def list_workers(endpoint_id: UUID, session: Session, caller: Authenticated, query: PageParams) -> dict[str, Any]:
    """Lists the workers as they were last seen."""
    workers = service.worker_views(await service.visible(session, caller, endpoint_id))
    return listed(workers, query, "state", "started_at")


@router.get("/{endpoint_id}/workers/{worker_id}")
async def show_worker(endpoint_id: UUID, worker_id: str, session: Session, caller: Authenticated) -> dict[str, Any]:
    """Shows one worker."""
    for worker in service.worker_views(await service.visible(session, caller, endpoint_id)):
        if worker["id"] == worker_id:
            return worker
    raise Problem("not_found", "There is no such worker.")


@router.delete("/{endpoint_id}/workers", status_code=202)
async def remove_workers(
    endpoint_id: UUID,
    context: Context,
    session: Session,
    caller: Authenticated,
    count: Annotated[int, Query(ge=1, le=256)] = 1,
) -> dict[str, Any]:
    """Begins to remove the newest workers, one by default; the answer is the job."""
    return await scale.remove_workers(Visit(context, session, caller), endpoint_id, count)


@router.delete("/{endpoint_id}/workers/{worker_id}", status_code=202)
async def remove_worker(
    endpoint_id: UUID, worker_id: str, context: Context, session: Session, caller: Authenticated
) -> dict[str, Any]:
    """Begins to remove the newest worker by its id; the answer is the job. Workers go in the opposite order of their numbers."""
    visit = Visit(context, session, caller)
    endpoint = await service.visible(session, caller, endpoint_id)
    newest = service.newest_worker(endpoint)
    ordinal = _ordinal_of(endpoint, worker_id)
    if ordinal is None or ordinal > newest:
        raise Problem("not_found", "There is no such worker.")
    if ordinal != newest:
        named = next((one["id"] for one in endpoint.observed.get("workers", []) if one.get("ordinal") == newest), None)
        raise Problem("not_the_newest_worker", f"Remove the newest worker first: {named or f'{endpoint_id}-{newest}'}.")
    return await scale.remove_workers(visit, endpoint_id, 1)


@router.get("/{endpoint_id}/events")
async def list_events(endpoint_id: UUID, session: Session, caller: Authenticated, query: PageParams) -> dict[str, Any]:
    """Lists what happened to an endpoint, newest first: its states with their reasons, restarts of workers, repairs."""
    await service.visible(session, caller, endpoint_id)
    return (await events.page(session, endpoint_id, query)).envelope(events.view)


@router.get("/{endpoint_id}/logs", response_class=PlainTextResponse)
async def read_logs(
    request: Request,
    endpoint_id: UUID,
    context: Context,
    caller: Authenticated,
    worker: Annotated[str | None, Query(max_length=100)] = None,
    tail: Annotated[int, Query(ge=1, le=5000)] = 200,
    follow: bool = False,
) -> Response:
    """The workers' logs as text, one line each with its worker; `follow=true` goes on with new lines."""
    async with context.database.transaction() as session:
        endpoint = await service.visible(session, caller, endpoint_id)
        ordinal = _ordinal_of(endpoint, worker)
    lines = context.logs.lines(endpoint.cluster_id, endpoint_id, ordinal, tail, follow)
    if not follow:
        text = "".join([f"{line}\n" async for line in lines])
        return PlainTextResponse(text)
    return open_text(request, caller, lines)


def _ordinal_of(endpoint: EndpointRow, worker: str | None) -> int | None:
    """The number of a worker that has been seen, whose id may be any name that its cluster gave it; else as it spells."""
    for one in endpoint.observed.get("workers", []):
        if one["id"] == worker and one.get("ordinal") is not None:
            return int(one["ordinal"])
    return _ordinal(endpoint.id, worker)


def _ordinal(endpoint_id: UUID, worker: str | None) -> int | None:
    if worker is None:
        return None
    number = worker.removeprefix(f"{endpoint_id}-")
    if not (number.isascii() and number.isdigit() and len(number) < 5):
        raise Problem("not_found", "There is no such worker.")
    return int(number)
