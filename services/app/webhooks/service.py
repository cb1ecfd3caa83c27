"""Webhooks for people: made, changed, tested, their secrets rotated, their deliveries read and repeated."""

from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.audit import service as audit
from services.app.context import AppContext
from services.app.identity.caller import Caller
from services.app.projects import repository as projects
from services.app.resources import Revisions, check_project, check_revision, save
from services.app.webhooks import names, repository, secrets
from services.app.webhooks.outbox import WEBHOOKS, Receiver, Topic, announce
from services.app.webhooks.schemas import WebhookChange, WebhookIn, delivery_view, message_id, webhook_view
from services.app.webhooks.tables import WebhookRow
from shared.clock import now
from shared.errors import Problem
from shared.http.pages import PageQuery
from shared.security.addresses import AddressRefused, check_url
from shared.security.outgoing import policy_of
from shared.settings import Settings

MOST = 50  # webhooks of one project

_LOCK_LANE = text("SELECT 1 FROM platform.webhook_message WHERE lane = :lane AND state = 'pending' FOR UPDATE")
_AGAIN = text("""
    UPDATE platform.webhook_message m
       SET state = 'pending', attempts = 0, token = NULL, ended_at = NULL, offered_at = clock_timestamp(),
           next_at = CASE WHEN EXISTS (SELECT 1 FROM platform.webhook_message o WHERE o.lane = m.lane AND o.id <> m.id
                                          AND o.state = 'pending') THEN NULL ELSE clock_timestamp() END
     WHERE m.id = :id""")
_NOW = text("""
    UPDATE platform.webhook_message SET next_at = clock_timestamp() WHERE id = :id AND token IS NULL AND next_at IS NOT NULL""")


def check_receiver(settings: Settings, url: str, param: str = "url") -> None:
    """Problem `validation_failed` for an address that messages are never sent to; its name is resolved at each attempt."""
    try:
        check_url(url, policy_of(settings))
    except AddressRefused as refused:
        raise Problem("validation_failed", f"Messages cannot be sent there: {refused}.", param=param) from None


async def page(
    session: AsyncSession, caller: Caller, project_id: UUID | None, enabled: bool | None, query: PageQuery
) -> dict[str, Any]:
    await check_project(session, caller, project_id)
    return (await repository.page(session, caller, project_id, enabled, query)).envelope(webhook_view)


async def visible(session: AsyncSession, caller: Caller, webhook_id: UUID, *, lock: bool = False) -> WebhookRow:
    webhook = await repository.get(session, webhook_id, lock=lock)
    if webhook is None:
        raise Problem("not_found", "There is no such webhook.")
    caller.check_sees(webhook.project_id, "webhook")
    return webhook


async def create(session: AsyncSession, context: AppContext, caller: Caller, body: WebhookIn) -> dict[str, Any]:
    """The view with `secret`, the only time that it is shown."""
    caller.require("member")
    await check_project(session, caller, body.project_id)
    if not caller.works_in(body.project_id):
        raise Problem("forbidden", "You may only read in this project.", param="project_id")
    check_receiver(context.settings, body.url)
    # The lock makes simultaneous creations count one after another.
    if await projects.get(session, body.project_id, lock=True) is None:
        raise Problem("reference_not_found", "There is no such project any more.", param="project_id")
    if await repository.count(session, body.project_id) >= MOST:
        raise Problem("quota_exceeded", f"A project may have {MOST} webhooks; delete some first.")
    webhook_id, secret, moment = uuid4(), secrets.new_secret(), now()
    webhook = WebhookRow(
        id=webhook_id, project_id=body.project_id, url=body.url, events=body.events, description=body.description,
        enabled=body.enabled, sealed=secrets.sealed_first(context.keyring, secrets.context_of(webhook_id), secret),
        created_by=caller.user_id, created_at=moment, updated_at=moment, revision=1,
    )  # fmt: skip
    session.add(webhook)
    await save(session)
    await _record(session, caller, "webhook.create", webhook, url=webhook.url, events=webhook.events)
    return {**webhook_view(webhook), "secret": secret}


async def replace(
    session: AsyncSession,
    context: AppContext,
    caller: Caller,
    webhook_id: UUID,
    body: WebhookChange,
    expected: Revisions | None,
) -> dict[str, Any]:
    """What waits to be sent goes to the new address, and nowhere when it is disabled."""
    webhook = await _changeable(session, caller, webhook_id)
    check_revision(webhook, expected)
    check_receiver(context.settings, body.url)
    changed = {name: value for name, value in body.model_dump().items() if getattr(webhook, name) != value}
    if changed:
        for name, value in changed.items():
            setattr(webhook, name, value)
        if "enabled" in changed:
            webhook.reason = None
        await _changed(session, webhook)
        await _record(session, caller, "webhook.change", webhook, **changed)
        context.hub.publish_after_commit(session, WEBHOOKS)
    return webhook_view(webhook)


async def delete(session: AsyncSession, caller: Caller, webhook_id: UUID, expected: Revisions | None) -> None:
    """With its deliveries; what has not been sent is not."""
    webhook = await _changeable(session, caller, webhook_id)
    check_revision(webhook, expected)
    await session.delete(webhook)
    await session.flush()
    await _record(session, caller, "webhook.delete", webhook, url=webhook.url)


async def rotate(session: AsyncSession, context: AppContext, caller: Caller, webhook_id: UUID) -> dict[str, Any]:
    """The view with the new `secret`. The old one signs beside it for a day."""
    webhook = await _changeable(session, caller, webhook_id)
    secret = secrets.new_secret()
    webhook.sealed = secrets.sealed_next(context.keyring, secrets.context_of(webhook_id), webhook.sealed, secret)
    await _changed(session, webhook)
    await _record(session, caller, "webhook.rotate", webhook)
    return {**webhook_view(webhook), "secret": secret}


async def test(session: AsyncSession, context: AppContext, caller: Caller, webhook_id: UUID) -> dict[str, Any]:
    """Send a message of the event `webhook.test`; its delivery."""
    webhook = await _changeable(session, caller, webhook_id)
    if not webhook.enabled:
        raise Problem("conflict", "The webhook is disabled; enable it first.")
    topic = Topic(webhook.project_id, uuid4(), 1)
    data = {"webhook_id": str(webhook_id), "message": "This message was sent to try the webhook."}
    [sent] = await announce(context.hub, session, topic, names.TEST, data, [Receiver(webhook_id)])
    await _record(session, caller, "webhook.test", webhook)
    message = await repository.message(session, sent)
    assert message is not None
    return delivery_view(message)


async def new_signing_secret(session: AsyncSession, context: AppContext, caller: Caller, project_id: UUID) -> str:
    """For messages to addresses that executions were started with; for who manages the project."""
    await check_project(session, caller, project_id)
    if not caller.manages(project_id):
        raise Problem("forbidden", "Only managers of the project may have a new signing secret.")
    await audit.record(session, caller, "webhook.rotate", "project", project_id, project_id=project_id)
    return await secrets.renew_of_project(session, context.keyring, project_id)


# ---- deliveries


async def deliveries(
    session: AsyncSession, caller: Caller, filters: dict[str, Any], query: PageQuery
) -> dict[str, Any]:
    """`filters` are columns of the messages, by name."""
    if filters.get("webhook_id") is not None:
        await visible(session, caller, filters["webhook_id"])
    await check_project(session, caller, filters.get("project_id"))
    return (await repository.messages(session, caller, filters, query)).envelope(delivery_view)


async def redeliver(session: AsyncSession, context: AppContext, caller: Caller, delivery_id: UUID) -> dict[str, Any]:
    """Send it again under its id: at once, or after what is pending on its topic. One that waits for a retry goes now."""
    message = await repository.message(session, delivery_id)
    if message is None:
        raise Problem("not_found", "There is no such delivery.")
    caller.check_works_in(message.project_id, "delivery")
    await session.execute(_LOCK_LANE, {"lane": message.lane})
    message = await repository.message(session, delivery_id, lock=True)
    if message is None:
        raise Problem("not_found", "There is no such delivery.")
    await session.execute(_NOW if message.state == "pending" else _AGAIN, {"id": delivery_id})
    await audit.record(
        session, caller, "webhook.redeliver", "webhook_delivery", delivery_id, project_id=message.project_id,
        message_id=message_id(delivery_id), event=message.event,
    )  # fmt: skip
    context.hub.publish_after_commit(session, WEBHOOKS)
    again = await repository.message(session, delivery_id)
    assert again is not None
    return delivery_view(again)


async def _changeable(session: AsyncSession, caller: Caller, webhook_id: UUID) -> WebhookRow:
    webhook = await visible(session, caller, webhook_id, lock=True)
    caller.check_works_in(webhook.project_id, "webhook")
    return webhook


async def _changed(session: AsyncSession, webhook: WebhookRow) -> None:
    webhook.revision += 1
    webhook.updated_at = now()
    await save(session)


async def _record(session: AsyncSession, caller: Caller, action: str, webhook: WebhookRow, **details: Any) -> None:
    await audit.record(session, caller, action, "webhook", webhook.id, project_id=webhook.project_id, **details)
