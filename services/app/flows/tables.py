"""Flows, their versions, their executions, and what belongs to an execution; in the schema `flow`.

An execution is a job of the kind `run_flow` with the same id: how it stands is in the ledger, and it goes when its job goes.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.base import Base, Created, one_of

STATUSES = ("PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED")
LIVE = ("PENDING", "RUNNING")
TRIGGERS = ("api", "schedule", "webhook", "parent", "retry")
_EXECUTION = "flow.execution.id"
_UPLOADED = text("project_id IS NOT NULL")


class FlowRow(Base):
    """`version` is the current one. `dialect` is the one in which the flow was created."""

    __tablename__ = "flow"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(unique=True)  # wf-4g7h8j9k
    project_id: Mapped[UUID] = mapped_column(ForeignKey("platform.project.id"))
    name: Mapped[str]
    description: Mapped[str | None]
    dialect: Mapped[str]
    version: Mapped[int]
    revision: Mapped[int] = mapped_column(server_default="1")
    created_by: Mapped[UUID | None]
    created_at: Mapped[Created]
    updated_at: Mapped[Created]
    deleted_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_flow_created", "created_at", "id"),
        Index("ix_flow_name", "name", "id"),
        Index("ix_flow_updated", "updated_at", "id"),
        Index("ix_flow_live", "project_id", postgresql_where=text("deleted_at IS NULL")),
        {"schema": "flow"},
    )


class VersionRow(Base):
    """One version of a flow, which never changes. `definition` is a `shared.flows.definition.Flow`."""

    __tablename__ = "version"

    flow_id: Mapped[UUID] = mapped_column(ForeignKey("flow.flow.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    definition: Mapped[dict[str, Any]] = mapped_column(JSONB)
    dialect: Mapped[str]
    created_by: Mapped[UUID | None]
    created_at: Mapped[Created]

    __table_args__ = ({"schema": "flow"},)


class ExecutionRow(Base):
    """`status` follows the job's state, in the words of flows.

    Of a sub-flow, `parent` is the execution that started it, `parent_task` the task that waits for it, and
    `parent_attempt` the attempt of the parent's job that started it, or took it up again.
    """

    __tablename__ = "execution"

    # At the commit, for the job's first event finds the execution already.
    id: Mapped[UUID] = mapped_column(
        ForeignKey("jobs.job.id", ondelete="CASCADE", deferrable=True, initially="DEFERRED"), primary_key=True
    )
    slug: Mapped[str] = mapped_column(unique=True)  # ex-1a2b3c4d; we-1a2b3c4d is the same
    flow_id: Mapped[UUID] = mapped_column(ForeignKey("flow.flow.id"))
    version: Mapped[int]
    project_id: Mapped[UUID]
    inputs: Mapped[dict[str, Any]] = mapped_column(JSONB)
    webhook_url: Mapped[str | None]
    trigger: Mapped[str]
    status: Mapped[str] = mapped_column(server_default="PENDING")
    parent: Mapped[UUID | None] = mapped_column(ForeignKey(_EXECUTION, ondelete="SET NULL"))
    parent_task: Mapped[str | None]
    parent_attempt: Mapped[int | None]
    created_at: Mapped[Created]

    __table_args__ = (
        CheckConstraint(one_of("trigger", TRIGGERS), name="trigger"),
        CheckConstraint(one_of("status", STATUSES), name="status"),
        Index("ix_execution_created", "created_at", "id"),
        Index("ix_execution_flow", "flow_id", "created_at", "id"),
        Index("ix_execution_project", "project_id", "created_at", "id"),
        Index("ix_execution_live", "project_id", postgresql_where=text(one_of("status", LIVE))),
        Index("uq_execution_child", "parent", "parent_task", unique=True, postgresql_where=text("parent IS NOT NULL")),
        {"schema": "flow"},
    )


class ArtifactRow(Base):
    """A file: made by a task of an execution, with which it goes, or uploaded into a project. Its bytes are a blob, kept
    while a row names it. Of an upload, `used_at` is when an execution was last given it, to the hour.
    """

    __tablename__ = "artifact"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    execution_id: Mapped[UUID | None] = mapped_column(ForeignKey(_EXECUTION, ondelete="CASCADE"), index=True)
    task: Mapped[str | None]
    project_id: Mapped[UUID | None] = mapped_column(ForeignKey("platform.project.id", ondelete="CASCADE"))
    name: Mapped[str]
    media_type: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(index=True)
    created_at: Mapped[Created]
    used_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("(execution_id IS NULL) <> (project_id IS NULL)", name="owner"),
        Index("ix_artifact_project", "project_id", "created_at", "id", postgresql_where=_UPLOADED),
        Index("ix_artifact_uploaded", "created_at", "id", postgresql_where=_UPLOADED),
        {"schema": "flow"},
    )


class FileUseRow(Base):
    """That the inputs of an execution name an uploaded file, which stays as long as the execution is known."""

    __tablename__ = "file_use"

    execution_id: Mapped[UUID] = mapped_column(ForeignKey(_EXECUTION, ondelete="CASCADE"), primary_key=True)
    artifact_id: Mapped[UUID] = mapped_column(ForeignKey("flow.artifact.id"), primary_key=True, index=True)

    __table_args__ = ({"schema": "flow"},)


class SecretRow(Base):
    """The provider's key that came with an execution, sealed; it goes when the execution ends. `id` is the execution's."""

    __tablename__ = "secret"

    id: Mapped[UUID] = mapped_column(ForeignKey(_EXECUTION, ondelete="CASCADE"), primary_key=True)
    sealed: Mapped[bytes]

    __table_args__ = ({"schema": "flow"},)
