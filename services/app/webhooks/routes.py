"""The routes of webhooks and their deliveries."""

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic_core import to_json

from services.app.context import Context, Session
from services.app.identity.authenticate import Authenticated
from services.app.identity.idempotency import Once, ShownOnce
from services.app.resources import JSON, Expected, FilterText, answer
from services.app.webhooks import service
from services.app.webhooks.schemas import WebhookChange, WebhookIn, webhook_view
from shared.http.bodies import StrictRoute, fingerprint_of
from shared.http.pages import PageParams

router = APIRouter(prefix="/webhooks", tags=["webhooks"], route_class=StrictRoute)
State = Literal["pending", "delivered", "failed"]


@router.get("")
async def list_webhooks(
    session: Session,
    caller: Authenticated,
    query: PageParams,
    project_id: Annotated[UUID | None, Query()] = None,
    enabled: Annotated[bool | None, Query()] = None,
) -> dict[str, Any]:
    """Lists the webhooks of the caller's projects."""
    return await service.page(session, caller, project_id, enabled, query)


@router.post("", status_code=201)
async def create_webhook(
    body: WebhookIn, request: Request, context: Context, caller: Authenticated, once: Once
) -> Response:
    """Makes a webhook. `secret`, with which its messages are signed, is shown in this answer only; keep it."""

    async def work() -> Response:
        async with context.database.transaction() as session:
            view = await service.create(session, context, caller, body)
        return ShownOnce(view, {"secret"}, headers={"ETag": '"1"', "Location": f"/webhooks/{view['id']}"})

    return await once.run(fingerprint_of(request), work)


@router.post("/signing-secret")
async def renew_signing_secret(
    request: Request, context: Context, caller: Authenticated, once: Once, project_id: Annotated[UUID, Query()]
) -> Response:
    """Makes a new secret, shown in this answer only, for messages to the addresses that executions were started with.

    One that there was signs beside it for 24 hours. For who manages the project.
    """

    async def work() -> Response:
        async with context.database.transaction() as session:
            secret = await service.new_signing_secret(session, context, caller, project_id)
        body = {"object": "webhook_signing_secret", "project_id": str(project_id), "secret": secret}
        return ShownOnce(body, {"secret"}, 200)

    return await once.run(fingerprint_of(request), work)


@router.get("/deliveries")
async def list_all_deliveries(
    session: Session,
    caller: Authenticated,
    query: PageParams,
    project_id: Annotated[UUID | None, Query()] = None,
    topic: Annotated[UUID | None, Query()] = None,
    event: Annotated[FilterText | None, Query()] = None,
    state: Annotated[State | None, Query()] = None,
) -> dict[str, Any]:
    """Lists deliveries of all webhooks and of executions; `topic` is the id of a job, an execution or an endpoint."""
    filters = {"project_id": project_id, "topic": topic, "event": event, "state": state}
    return await service.deliveries(session, caller, filters, query)


@router.post("/deliveries/{delivery_id}/redeliver", status_code=202)
async def redeliver(
    delivery_id: UUID, request: Request, context: Context, caller: Authenticated, once: Once
) -> Response:
    """Sends a message again, under its id. One that waits for its next attempt is sent at once."""

    async def work() -> Response:
        async with context.database.transaction() as session:
            view = await service.redeliver(session, context, caller, delivery_id)
        return Response(to_json(view), 202, media_type=JSON)

    return await once.run(fingerprint_of(request), work)


@router.get("/{webhook_id}")
async def show_webhook(webhook_id: UUID, session: Session, caller: Authenticated) -> Response:
    """Shows a webhook, without its secret."""
    return answer(webhook_view(await service.visible(session, caller, webhook_id)))


@router.put("/{webhook_id}")
async def replace_webhook(
    webhook_id: UUID,
    body: WebhookChange,
    context: Context,
    session: Session,
    caller: Authenticated,
    expected: Expected,
) -> Response:
    """Replaces a webhook's address, events, description and whether it is enabled; its secret stays."""
    return answer(await service.replace(session, context, caller, webhook_id, body, expected))


@router.delete("/{webhook_id}", status_code=204)
async def delete_webhook(webhook_id: UUID, session: Session, caller: Authenticated, expected: Expected) -> None:
    """Deletes a webhook and its deliveries."""
    await service.delete(session, caller, webhook_id, expected)


@router.post("/{webhook_id}/test", status_code=202)
async def test_webhook(
    webhook_id: UUID, request: Request, context: Context, caller: Authenticated, once: Once
) -> Response:
    """Sends a message to try the webhook; answers with its delivery."""

    async def work() -> Response:
        async with context.database.transaction() as session:
            view = await service.test(session, context, caller, webhook_id)
        return Response(to_json(view), 202, media_type=JSON)

    return await once.run(fingerprint_of(request), work)


@router.post("/{webhook_id}/secret")
async def rotate_secret(
    webhook_id: UUID, request: Request, context: Context, caller: Authenticated, once: Once
) -> Response:
    """Makes a new secret, shown in this answer only. The old one signs beside it for 24 hours."""

    async def work() -> Response:
        async with context.database.transaction() as session:
            view = await service.rotate(session, context, caller, webhook_id)
        return ShownOnce(view, {"secret"}, 200, headers={"ETag": f'"{view["revision"]}"'})

    return await once.run(fingerprint_of(request), work)


@router.get("/{webhook_id}/deliveries")
async def list_deliveries(
    webhook_id: UUID,
    session: Session,
    caller: Authenticated,
    query: PageParams,
    event: Annotated[FilterText | None, Query()] = None,
    state: Annotated[State | None, Query()] = None,
) -> dict[str, Any]:
    """Lists a webhook's messages with their attempts, the newest first. They are kept for 30 days after their end."""
    return await service.deliveries(session, caller, {"webhook_id": webhook_id, "event": event, "state": state}, query)
