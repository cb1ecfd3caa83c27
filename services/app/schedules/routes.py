"""The routes of schedules, below their flow."""

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response

from services.app.context import Context, Session
from services.app.identity.authenticate import Authenticated
from services.app.identity.idempotency import Once
from services.app.resources import Expected, answer, created
from services.app.schedules import service
from services.app.schedules.schemas import ScheduleIn
from shared.http.bodies import StrictRoute, fingerprint_of
from shared.http.pages import PageParams

router = APIRouter(prefix="/flow/workflows/{workflow_id}/schedules", tags=["flows"], route_class=StrictRoute)


@router.get("")
async def list_schedules(
    workflow_id: str, session: Session, caller: Authenticated, query: PageParams
) -> dict[str, Any]:
    """Lists the schedules of a workflow."""
    return await service.page(session, caller, workflow_id, query)


@router.post("", status_code=201)
async def create_schedule(
    workflow_id: str, body: ScheduleIn, request: Request, context: Context, caller: Authenticated, once: Once
) -> Response:
    """Has a workflow executed at times, on behalf of who asks: `cron` has five fields, read in `timezone`."""

    async def work() -> Response:
        async with context.database.transaction() as session:
            view = await service.create(session, context, caller, workflow_id, body)
        return created(view, f"/flow/workflows/{view['workflow_id']}/schedules")

    return await once.run(fingerprint_of(request), work)


@router.get("/{schedule_id}")
async def show_schedule(workflow_id: str, schedule_id: UUID, session: Session, caller: Authenticated) -> Response:
    """Shows a schedule, when it comes next, and what became of the last time."""
    return answer(await service.show(session, caller, workflow_id, schedule_id))


@router.put("/{schedule_id}")
async def replace_schedule(
    workflow_id: str,
    schedule_id: UUID,
    body: ScheduleIn,
    context: Context,
    session: Session,
    caller: Authenticated,
    expected: Expected,
) -> Response:
    """Replaces a schedule; from then on it runs on behalf of who does so."""
    return answer(await service.replace(session, context, caller, workflow_id, schedule_id, body, expected))


@router.delete("/{schedule_id}", status_code=204)
async def delete_schedule(
    workflow_id: str, schedule_id: UUID, session: Session, caller: Authenticated, expected: Expected
) -> None:
    """Deletes a schedule; executions that it has started go on."""
    await service.delete(session, caller, workflow_id, schedule_id, expected)
