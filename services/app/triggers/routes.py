"""The routes of triggers, below their flow, and the open one by which messages come."""

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json

from services.app.context import Context, Session
from services.app.identity.authenticate import Authenticated
from services.app.identity.idempotency import Once, ShownOnce
from services.app.resources import JSON, Expected, answer
from services.app.triggers import receiving, service
from services.app.triggers.schemas import TriggerChange, TriggerIn
from shared.http.bodies import StrictRoute, fingerprint_of, read_json
from shared.http.guards import add_header
from shared.http.pages import PageParams

router = APIRouter(prefix="/flow", tags=["flows"], route_class=StrictRoute)


@router.post("/triggers/{token}", status_code=202)
async def receive(token: str, request: Request, context: Context) -> Response:
    """Starts an execution by a signed message. It takes no key: the message is signed with the trigger's secret.

    As Standard Webhooks are (`webhook-id`, `webhook-timestamp`, `webhook-signature`), or as GitHub's
    (`X-Hub-Signature-256`). One that comes again within 24 hours is told the execution that it has started.
    """
    limits: receiving.Limits = request.app.state.trigger_limits
    for name, value in limits.addresses.take(request.client.host if request.client else "").items():
        add_header(request.scope, name, value)
    body = await read_json(request)
    execution_id = await receiving.receive(context, limits, token, request.headers, await request.body(), body)
    return Response(to_json({"execution_id": execution_id}), 202, media_type=JSON)


@router.get("/workflows/{workflow_id}/triggers")
async def list_triggers(workflow_id: str, session: Session, caller: Authenticated, query: PageParams) -> dict[str, Any]:
    """Lists the triggers of a workflow."""
    return await service.page(session, caller, workflow_id, query)


@router.post("/workflows/{workflow_id}/triggers", status_code=201)
async def create_trigger(
    workflow_id: str, body: TriggerIn, request: Request, context: Context, caller: Authenticated, once: Once
) -> Response:
    """Makes an address whose signed messages start the workflow, on behalf of who asks.

    `secret` is shown in this answer only. `scheme` is `standard` (Standard Webhooks) or `github`.
    """

    async def work() -> Response:
        async with context.database.transaction() as session:
            view = await service.create(session, context, caller, workflow_id, body)
        place = f"/flow/workflows/{view['workflow_id']}/triggers/{view['id']}"
        return ShownOnce(view, {"secret"}, headers={"ETag": '"1"', "Location": place})

    return await once.run(fingerprint_of(request), work)


@router.get("/workflows/{workflow_id}/triggers/{trigger_id}")
async def show_trigger(workflow_id: str, trigger_id: UUID, session: Session, caller: Authenticated) -> Response:
    """Shows a trigger, without its secret."""
    return answer(await service.show(session, caller, workflow_id, trigger_id))


@router.put("/workflows/{workflow_id}/triggers/{trigger_id}")
async def replace_trigger(
    workflow_id: str,
    trigger_id: UUID,
    body: TriggerChange,
    session: Session,
    caller: Authenticated,
    expected: Expected,
) -> Response:
    """Replaces a trigger's mapping, description and whether it is enabled; its address and secret stay."""
    return answer(await service.replace(session, caller, workflow_id, trigger_id, body, expected))


@router.delete("/workflows/{workflow_id}/triggers/{trigger_id}", status_code=204)
async def delete_trigger(
    workflow_id: str, trigger_id: UUID, session: Session, caller: Authenticated, expected: Expected
) -> None:
    """Deletes a trigger; executions that it has started go on."""
    await service.delete(session, caller, workflow_id, trigger_id, expected)
