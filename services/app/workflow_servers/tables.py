"""Workflow servers that have registered, and the runs that they have told of. What runs take and give is never told."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint, case, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, column_property, mapped_column

from shared.db.base import Base, Created, one_of

STATES = ("online", "offline", "stopped")
STATUSES = ("running", "completed", "failed", "cancelled", "unknown")
SILENT = 30  # seconds without a report after which a server is offline
_LATELY = func.clock_timestamp() - text(f"interval '{SILENT} seconds'")
_OPEN = text("status = 'running'")


class WorkflowServerRow(Base):
    """`instance` says where its runs are kept: servers that share a store are one. `process` is that of a server that keeps
    its runs in memory, where they end with it; null where they outlive it. `position`: how far the runs have been told.
    """

    __tablename__ = "workflow_server"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    project_id: Mapped[UUID] = mapped_column(ForeignKey("platform.project.id", ondelete="CASCADE"))
    name: Mapped[str]
    instance: Mapped[str]
    process: Mapped[str | None]
    url: Mapped[str | None]
    version: Mapped[str | None]
    workflows: Mapped[list[Any]] = mapped_column(JSONB)  # `[{name, start_schema, events}]`
    position: Mapped[str | None]
    owner_id: Mapped[UUID]  # whose key registered it last
    key_id: Mapped[UUID]
    created_at: Mapped[Created]
    updated_at: Mapped[Created]  # by its last registration
    online_since: Mapped[Created]
    seen_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    stopped_at: Mapped[datetime | None] = mapped_column()
    revision: Mapped[int] = mapped_column(server_default="1")
    # By the database's clock, whichever process asks.
    state: Mapped[str] = column_property(
        case((stopped_at.is_not(None), "stopped"), (seen_at > _LATELY, "online"), else_="offline")
    )

    __table_args__ = (
        UniqueConstraint("project_id", "name", "instance", name="uq_workflow_server_instance"),
        Index("ix_workflow_server_created", "created_at", "id"),
        Index("ix_workflow_server_name", "name", "id"),
        Index("ix_workflow_server_seen", "seen_at", "id"),
        {"schema": "platform"},
    )


class WorkflowRunRow(Base):
    """A run as its server told it last. `unknown`: the server has it no more, and has not said how it ended.

    `confirmed_at` is when it was told last; `created_at` when first.
    """

    __tablename__ = "workflow_run"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    project_id: Mapped[UUID] = mapped_column(ForeignKey("platform.project.id", ondelete="CASCADE"))
    server_id: Mapped[UUID] = mapped_column(ForeignKey("platform.workflow_server.id", ondelete="CASCADE"))
    handler_id: Mapped[str]
    run_id: Mapped[str]
    workflow: Mapped[str]
    status: Mapped[str]
    error: Mapped[str | None]
    started_at: Mapped[datetime]  # this and the next two by the server's clock
    updated_at: Mapped[datetime]
    completed_at: Mapped[datetime | None]
    started_by: Mapped[UUID | None]
    started_key_id: Mapped[UUID | None]
    cancel_asked_at: Mapped[datetime | None]
    cancel_asked_by: Mapped[UUID | None]
    cancel_taken_at: Mapped[datetime | None]
    confirmed_at: Mapped[Created]
    created_at: Mapped[Created]

    __table_args__ = (
        CheckConstraint(one_of("status", STATUSES), name="status"),
        UniqueConstraint("server_id", "run_id", name="uq_workflow_run_run_id"),
        Index("ix_workflow_run_started", "started_at", "id"),
        Index("ix_workflow_run_updated", "updated_at", "id"),
        Index("ix_workflow_run_project", "project_id", "started_at", "id"),
        Index("ix_workflow_run_server", "server_id", "started_at", "id"),
        Index("ix_workflow_run_open", "server_id", "confirmed_at", postgresql_where=_OPEN),
        Index("ix_workflow_run_created", "created_at"),
        {"schema": "platform"},
    )
