"""Incoming webhooks that start a flow, and what has come by them; in the schema `flow`."""

from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.base import Base, Created, one_of

SCHEMES = ("standard", "github")


class TriggerRow(Base):
    """`token` is in its path; `sealed` holds what its messages are signed with. It runs on behalf of `owner_id`.

    `mapping` says for each input where in the body it is; null: the whole body is the input `body`.
    """

    __tablename__ = "trigger"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    token: Mapped[str] = mapped_column(unique=True)
    flow_id: Mapped[UUID] = mapped_column(ForeignKey("flow.flow.id", ondelete="CASCADE"), index=True)
    description: Mapped[str | None]
    scheme: Mapped[str]
    mapping: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    enabled: Mapped[bool]
    sealed: Mapped[bytes]
    owner_id: Mapped[UUID]
    created_at: Mapped[Created]
    updated_at: Mapped[Created]
    revision: Mapped[int] = mapped_column(server_default="1")

    __table_args__ = (CheckConstraint(one_of("scheme", SCHEMES), name="scheme"), {"schema": "flow"})


class ArrivalRow(Base):
    """A message that has come, by its id: one that comes again starts nothing, and is told the same execution."""

    __tablename__ = "arrival"

    trigger_id: Mapped[UUID] = mapped_column(ForeignKey("flow.trigger.id", ondelete="CASCADE"), primary_key=True)
    message_id: Mapped[str] = mapped_column(primary_key=True)
    execution_id: Mapped[str | None]
    created_at: Mapped[Created]

    __table_args__ = (Index("ix_arrival_created", "created_at"), {"schema": "flow"})
