"""The audit log: who did what to what. Rows are added, never changed."""

from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.base import Base, Created


class AuditRow(Base):
    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    at: Mapped[Created]
    actor_id: Mapped[UUID | None]
    key_id: Mapped[UUID | None]
    action: Mapped[str]  # e.g. endpoint.delete
    resource_type: Mapped[str | None]
    resource_id: Mapped[str | None]
    project_id: Mapped[UUID | None]
    address: Mapped[str | None]
    request_id: Mapped[str | None]
    details: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))

    __table_args__ = (
        Index("ix_audit_actor", "actor_id", "id"),
        Index("ix_audit_project", "project_id", "id"),
        Index("ix_audit_resource", "resource_type", "resource_id", "id"),
        {"schema": "platform"},
    )
