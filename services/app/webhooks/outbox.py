"""The outbox: what is to be sent is written in the transaction of the change that it tells of.

Whoever announces holds the lock of what has changed (a job's row, an endpoint's row), so that the messages of a topic
are written in their order. `services.app.webhooks.delivery` sends them; `announcements` says who announces what.
"""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4, uuid5

from sqlalchemy import Connection, TextClause, text
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.webhooks.names import patterns_of
from shared.clock import iso, now
from shared.jobs.hub import Hub
from shared.jobs.stored import json_text

WEBHOOKS = "webhooks"  # the hub's name for "there is something to send"
_NAMESPACE = UUID("5a3c2f0e-9d0e-5c64-8f27-0d1f6f1b7a11")

_SUBSCRIBED = text("""
    SELECT id FROM platform.webhook WHERE project_id = :project AND enabled AND events && CAST(:patterns AS text[])
     ORDER BY id""")

# Waits for who just now ends the last message of a lane, so that one of the two sees the other.
_BUSY = text("""
    SELECT lane FROM platform.webhook_message WHERE lane = ANY(:lanes) AND state = 'pending'
     ORDER BY lane, number FOR UPDATE""")

_INSERT = text("""
    INSERT INTO platform.webhook_message (id, project_id, webhook_id, url, receiver, lane, topic, sequence, event, body,
                                          next_at)
    VALUES (:id, :project, :webhook, :url, :receiver, :lane, :topic, :sequence, :event, :body,
            CASE WHEN CAST(:busy AS boolean) THEN NULL ELSE clock_timestamp() END)""")


class Topic:
    """What an announcement tells of: a job, an execution, an endpoint. `sequence` grows with each change of it."""

    __slots__ = ("id", "project_id", "sequence")

    def __init__(self, project_id: UUID, id: UUID, sequence: int) -> None:
        self.project_id, self.id, self.sequence = project_id, id, sequence


class Receiver:
    """A subscription, or an address of its own."""

    __slots__ = ("url", "webhook_id")

    def __init__(self, webhook_id: UUID | None, url: str | None = None) -> None:
        self.webhook_id, self.url = webhook_id, url

    def id(self, project_id: UUID) -> UUID:
        """Where a slow one is bounded: the subscription, or the host."""
        return self.webhook_id or uuid5(_NAMESPACE, f"{project_id} {urlsplit(self.url or '').netloc}")

    def lane(self, topic: Topic) -> UUID:
        return uuid5(_NAMESPACE, f"{self.webhook_id or self.url} {topic.id}")


async def subscribed(session: AsyncSession, project_id: UUID, event: str) -> list[Receiver]:
    """The webhooks of the project that ask for the event: one look at an index."""
    rows = await session.execute(_SUBSCRIBED, _wanted(project_id, event))
    return [Receiver(row.id) for row in rows]


async def announce(
    hub: Hub, session: AsyncSession, topic: Topic, event: str, data: dict[str, Any], receivers: Sequence[Receiver]
) -> list[UUID]:
    """Write a message for each receiver; their ids. They are sent after the commit, and only then."""
    if not receivers:
        return []
    lanes = [one.lane(topic) for one in receivers]
    busy = set((await session.execute(_BUSY, {"lanes": lanes})).scalars())
    values = _messages(topic, event, data, receivers, busy)
    await session.execute(_INSERT, values)
    hub.publish_after_commit(session, WEBHOOKS)
    return [one["id"] for one in values]


def announce_blocking(connection: Connection, topic: Topic, event: str, data: dict[str, Any]) -> None:
    """`announce` to the subscriptions, for what is told while a session flushes; `data` as for it."""

    def run(statement: TextClause, values: dict[str, Any]) -> list[UUID]:
        return list(connection.execute(statement, values).scalars())

    receivers = [Receiver(found) for found in run(_SUBSCRIBED, _wanted(topic.project_id, event))]
    if receivers:
        busy = set(run(_BUSY, {"lanes": [one.lane(topic) for one in receivers]}))
        connection.execute(_INSERT, _messages(topic, event, data, receivers, busy))


def _wanted(project_id: UUID, event: str) -> dict[str, Any]:
    return {"project": project_id, "patterns": patterns_of(event)}


def _messages(
    topic: Topic, event: str, data: dict[str, Any], receivers: Sequence[Receiver], busy: set[UUID]
) -> list[dict[str, Any]]:
    body = json_text({"type": event, "timestamp": iso(now()), "data": data})
    common = {"project": topic.project_id, "topic": topic.id, "sequence": topic.sequence, "event": event, "body": body}
    return [
        {
            **common, "id": uuid4(), "webhook": one.webhook_id, "url": one.url, "receiver": one.id(topic.project_id),
            "lane": one.lane(topic), "busy": one.lane(topic) in busy,
        }
        for one in receivers
    ]  # fmt: skip
