"""Bodies of the routes of webhooks, and how these look on the wire: never with a secret."""

import json
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, StrictBool

from services.app.resources import text_of
from services.app.webhooks.names import PATTERNS
from services.app.webhooks.tables import MessageRow, WebhookRow
from services.app.wizards.fields import LongText
from shared.clock import iso

MAX_URL = 2000  # characters


def _known(name: str) -> str:
    if name not in PATTERNS:
        raise ValueError("is not an event, such as job.succeeded, job.*, endpoint.* or execution.completed")
    return name


def _distinct(names: list[str]) -> list[str]:
    return sorted(set(names))


EventName = Annotated[str, Field(max_length=100), AfterValidator(_known)]
Url = Annotated[
    str,
    BeforeValidator(lambda value: value.strip() if isinstance(value, str) else value),
    Field(min_length=1, max_length=MAX_URL),
]


class WebhookChange(BaseModel):
    model_config = {"extra": "forbid"}

    url: Url
    events: Annotated[list[EventName], Field(min_length=1, max_length=50), AfterValidator(_distinct)]
    description: LongText | None = None
    enabled: StrictBool = True


class WebhookIn(WebhookChange):
    project_id: UUID


def webhook_view(webhook: WebhookRow) -> dict[str, Any]:
    return {
        "object": "webhook",
        "id": str(webhook.id),
        "project_id": str(webhook.project_id),
        "url": webhook.url,
        "events": webhook.events,
        "description": webhook.description,
        "enabled": webhook.enabled,
        "reason": webhook.reason,
        "created_by": text_of(webhook.created_by),
        "created_at": iso(webhook.created_at),
        "updated_at": iso(webhook.updated_at),
        "revision": webhook.revision,
    }


def message_id(row_id: UUID) -> str:
    """The header `webhook-id`, the same at every attempt."""
    return f"msg_{row_id.hex}"


def delivery_view(message: MessageRow) -> dict[str, Any]:
    """A message with its attempts. `next_at` is null when it has ended, or waits for those before it on its topic."""
    return {
        "object": "webhook_delivery",
        "id": str(message.id),
        "message_id": message_id(message.id),
        "webhook_id": text_of(message.webhook_id),
        "project_id": str(message.project_id),
        "url": message.url,
        "event": message.event,
        "topic": str(message.topic),
        "sequence": message.sequence,
        "state": message.state,
        "attempts": message.attempts,
        "log": message.log,
        "body": json.loads(message.body),
        "next_at": iso(message.next_at) if message.state == "pending" else None,
        "created_at": iso(message.created_at),
        "ended_at": iso(message.ended_at),
    }
