"""Projects: who works in them, what their policy and quotas are."""

from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.base import Base, Created, one_of

MEMBER_ROLES = ("manager", "member", "viewer")


class ProjectRow(Base):
    """`policy` and `quotas` hold only what differs from the defaults (`services.app.projects.schemas`)."""

    __tablename__ = "project"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    description: Mapped[str | None]
    icon: Mapped[str | None]
    policy: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    quotas: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    created_by: Mapped[UUID | None]
    created_at: Mapped[Created]
    updated_at: Mapped[Created]
    revision: Mapped[int] = mapped_column(server_default="1")

    __table_args__ = (Index("ix_project_created", "created_at", "id"), {"schema": "platform"})


class MemberRow(Base):
    __tablename__ = "member"

    project_id: Mapped[UUID] = mapped_column(ForeignKey("platform.project.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[UUID] = mapped_column(
        ForeignKey("platform.user.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    role: Mapped[str]
    created_at: Mapped[Created]

    __table_args__ = (CheckConstraint(one_of("role", MEMBER_ROLES), name="role"), {"schema": "platform"})
