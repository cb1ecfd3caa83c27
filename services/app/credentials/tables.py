"""Credentials for hubs and providers, sealed before they are stored."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, Index, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TEXT
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.base import Base, Created


class CredentialRow(Base):
    """`sealed` holds the secret fields, `secrets` their names, `fields` the others.

    A credential belongs to its owner, or to a project.
    """

    __tablename__ = "credential"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    type: Mapped[str]
    owner_id: Mapped[UUID] = mapped_column(ForeignKey("platform.user.id", ondelete="CASCADE"), index=True)
    project_id: Mapped[UUID | None] = mapped_column(ForeignKey("platform.project.id", ondelete="CASCADE"), index=True)
    fields: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    sealed: Mapped[bytes]
    secrets: Mapped[list[str]] = mapped_column(ARRAY(TEXT), server_default="{}")
    last_used_at: Mapped[datetime | None]
    created_at: Mapped[Created]
    updated_at: Mapped[Created]
    revision: Mapped[int] = mapped_column(server_default="1")

    __table_args__ = (
        Index("uq_credential_name", "owner_id", "name", unique=True),
        Index("ix_credential_created", "created_at", "id"),
        {"schema": "platform"},
    )
