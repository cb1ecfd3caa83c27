"""Queries of webhooks and their messages, for people; those of the outbox and of the delivery are beside them."""

from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.identity.caller import Caller
from services.app.webhooks.tables import MessageRow, WebhookRow
from shared.http.pages import Listing, Page, PageQuery, paginate

WEBHOOKS = Listing(
    id=WebhookRow.id,
    sortable={"created_at": WebhookRow.created_at, "updated_at": WebhookRow.updated_at, "url": WebhookRow.url},
    default="-created_at",
    search=[WebhookRow.url, WebhookRow.description],
)
MESSAGES = Listing(
    id=MessageRow.id, sortable={"created_at": MessageRow.created_at}, default="-created_at", search=[MessageRow.event]
)


async def get(session: AsyncSession, webhook_id: UUID, *, lock: bool = False) -> WebhookRow | None:
    return await session.get(WebhookRow, webhook_id, populate_existing=True, with_for_update=lock)


async def count(session: AsyncSession, project_id: UUID) -> int:
    statement = select(func.count()).where(WebhookRow.project_id == project_id)
    return (await session.execute(statement)).scalar_one()


async def page(
    session: AsyncSession, caller: Caller, project_id: UUID | None, enabled: bool | None, query: PageQuery
) -> Page[WebhookRow]:
    statement: Select[Any] = select(WebhookRow).where(caller.visible(WebhookRow.project_id))
    if project_id is not None:
        statement = statement.where(WebhookRow.project_id == project_id)
    if enabled is not None:
        statement = statement.where(WebhookRow.enabled.is_(enabled))
    return await paginate(session, statement, WEBHOOKS, query)


async def message(session: AsyncSession, message_id: UUID, *, lock: bool = False) -> MessageRow | None:
    return await session.get(MessageRow, message_id, populate_existing=True, with_for_update=lock)


async def messages(
    session: AsyncSession, caller: Caller, filters: dict[str, Any], query: PageQuery
) -> Page[MessageRow]:
    statement: Select[Any] = select(MessageRow).where(caller.visible(MessageRow.project_id))
    for name, value in filters.items():
        if value is not None:
            statement = statement.where(getattr(MessageRow, name) == value)
    return await paginate(session, statement, MESSAGES, query)
