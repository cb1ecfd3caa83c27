"""Schedules of flows, and when they have fired; in the schema `flow`."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.base import Base, Created, one_of

MISFIRES = ("run_once", "skip")


class ScheduleRow(Base):
    """`next_at` is null while it is disabled. `owner_id`, who changed it last, is on whose behalf it runs.

    `last`: `{at, execution_id, reason}` of the latest firing.
    """

    __tablename__ = "schedule"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    flow_id: Mapped[UUID] = mapped_column(ForeignKey("flow.flow.id", ondelete="CASCADE"), index=True)
    cron: Mapped[str]
    timezone: Mapped[str]
    inputs: Mapped[dict[str, Any]] = mapped_column(JSONB)
    enabled: Mapped[bool]
    misfire: Mapped[str]
    next_at: Mapped[datetime | None]
    last: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    owner_id: Mapped[UUID]
    created_at: Mapped[Created]
    updated_at: Mapped[Created]
    revision: Mapped[int] = mapped_column(server_default="1")

    __table_args__ = (
        CheckConstraint(one_of("misfire", MISFIRES), name="misfire"),
        Index("ix_schedule_due", "next_at", postgresql_where=text("next_at IS NOT NULL")),
        {"schema": "flow"},
    )


class FiringRow(Base):
    """That a schedule has fired at a time: once, whatever happens."""

    __tablename__ = "firing"

    schedule_id: Mapped[UUID] = mapped_column(ForeignKey("flow.schedule.id", ondelete="CASCADE"), primary_key=True)
    at: Mapped[datetime] = mapped_column(primary_key=True)
    created_at: Mapped[Created]

    __table_args__ = (Index("ix_firing_created", "created_at"), {"schema": "flow"})
