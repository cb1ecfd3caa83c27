"""Workflows: the drafts that wizards fill, step by step."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.base import Base, Created, one_of

WORKFLOW_STATES = ("in_progress", "completed", "failed", "cancelled")


class WorkflowRow(Base):
    """`fields` is what the user sent, `field_steps` where; files are sealed. What the server finds out is elsewhere:
    the job in the ledger, the outcome in `result`."""

    __tablename__ = "workflow"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    type: Mapped[str]
    owner_id: Mapped[UUID]
    project_id: Mapped[UUID | None]
    status: Mapped[str]
    current_step: Mapped[int]
    total_steps: Mapped[int]
    fields: Mapped[dict[str, Any]] = mapped_column(JSONB)
    field_steps: Mapped[dict[str, Any]] = mapped_column(JSONB)
    files: Mapped[dict[str, Any]] = mapped_column(
        JSONB, server_default=text("'{}'")
    )  # {field: {name, size, sha256, sealed}}
    job_id: Mapped[UUID | None]
    result: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    reason: Mapped[str | None] = mapped_column(JSONB)  # a sentence; the whole error is the job's
    revision: Mapped[int] = mapped_column(server_default="1")
    created_at: Mapped[Created]
    updated_at: Mapped[Created]
    ended_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(one_of("status", WORKFLOW_STATES), name="status"),
        Index("ix_workflow_owner", "owner_id", "created_at", "id"),
        Index("ix_workflow_created", "created_at", "id"),
        Index("ix_workflow_updated", "updated_at", "id"),
        Index("ix_workflow_open", "owner_id", postgresql_where=text("status = 'in_progress' AND job_id IS NULL")),
        {"schema": "platform"},
    )
