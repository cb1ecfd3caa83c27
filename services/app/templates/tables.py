"""Templates: defaults of a deploy configuration for a kind of use."""

from typing import Any
from uuid import UUID

from sqlalchemy import Index
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.base import Base, Created


class TemplateRow(Base):
    __tablename__ = "template"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    description: Mapped[str | None]
    icon: Mapped[str | None]
    template_type: Mapped[str]  # chat, summarization, question_answering, rag, code, embedding, other
    deploy_config: Mapped[dict[str, Any]] = mapped_column(JSONB)
    builtin: Mapped[bool] = mapped_column(server_default="false")
    created_by: Mapped[UUID | None]
    created_at: Mapped[Created]
    updated_at: Mapped[Created]
    revision: Mapped[int] = mapped_column(server_default="1")

    __table_args__ = (Index("ix_template_created", "created_at", "id"), {"schema": "platform"})
