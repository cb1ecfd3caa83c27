"""Webhooks: who wants to hear of what, and what is to be sent to whom."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TEXT
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.base import Base, Created, one_of

MESSAGE_STATES = ("pending", "delivered", "failed")


class WebhookRow(Base):
    """A subscription of a project. `sealed` holds its secrets (`services.app.webhooks.secrets`)."""

    __tablename__ = "webhook"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    project_id: Mapped[UUID] = mapped_column(ForeignKey("platform.project.id", ondelete="CASCADE"), index=True)
    url: Mapped[str]
    events: Mapped[list[str]] = mapped_column(ARRAY(TEXT))
    description: Mapped[str | None]
    enabled: Mapped[bool] = mapped_column(server_default="true")
    reason: Mapped[str | None]  # why it was disabled, where nobody did
    sealed: Mapped[bytes]
    created_by: Mapped[UUID | None]
    created_at: Mapped[Created]
    updated_at: Mapped[Created]
    revision: Mapped[int] = mapped_column(server_default="1")

    __table_args__ = (Index("ix_webhook_created", "created_at", "id"), {"schema": "platform"})


class SigningSecretRow(Base):
    """With what a project signs messages to receivers that are no subscriptions. `id` is the project's."""

    __tablename__ = "webhook_signing_secret"

    id: Mapped[UUID] = mapped_column(ForeignKey("platform.project.id", ondelete="CASCADE"), primary_key=True)
    sealed: Mapped[bytes]
    created_at: Mapped[Created]

    __table_args__ = ({"schema": "platform"},)


class MessageRow(Base):
    """What is to be sent to one receiver: a subscription, or the `url` that an execution was started with.

    `lane` is the receiver and the topic: of a lane the pending messages are sent one after another, by `sequence` and
    `number`. `next_at` is when one may be sent; null: when those before it have come to an end. While a process sends
    it, `token` is set and `next_at` is when the process is taken for dead. `receiver` is where a slow one is bounded.
    """

    __tablename__ = "webhook_message"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, Identity())
    project_id: Mapped[UUID] = mapped_column(ForeignKey("platform.project.id", ondelete="CASCADE"), index=True)
    webhook_id: Mapped[UUID | None] = mapped_column(ForeignKey("platform.webhook.id", ondelete="CASCADE"))
    url: Mapped[str | None]
    receiver: Mapped[UUID]
    lane: Mapped[UUID]
    topic: Mapped[UUID]  # the job, execution or endpoint that it tells of
    sequence: Mapped[int] = mapped_column(BigInteger)
    event: Mapped[str]
    body: Mapped[str]  # the same bytes at every attempt
    state: Mapped[str] = mapped_column(server_default="pending")
    attempts: Mapped[int] = mapped_column(server_default="0")
    next_at: Mapped[datetime | None]
    token: Mapped[UUID | None]
    log: Mapped[list[Any]] = mapped_column(
        JSONB, server_default=text("'[]'")
    )  # `[{at, status, error, answer, seconds}]`
    offered_at: Mapped[Created]  # from when the days are counted after which it is given up
    created_at: Mapped[Created]
    ended_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(one_of("state", MESSAGE_STATES), name="state"),
        Index("ix_webhook_message_due", "next_at", "number", postgresql_where=text("state = 'pending'")),
        Index("ix_webhook_message_lane", "lane", "sequence", "number", postgresql_where=text("state = 'pending'")),
        Index("ix_webhook_message_webhook", "webhook_id", "created_at", "id"),
        Index("ix_webhook_message_topic", "topic"),
        Index("ix_webhook_message_ended", "ended_at", postgresql_where=text("state <> 'pending'")),
        {"schema": "platform"},
    )
