"""Models, the catalogue that cloud models come from, scans and recorded overrides."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TEXT
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.base import Base, Created, one_of

MODEL_STATES = ("importing", "active", "failed", "deleted")
SCAN_STATES = ("running", "safe", "low", "medium", "high", "critical", "error", "cancelled")


class ProviderRow(Base):
    """Where models come from; seeded from the catalogue's data file."""

    __tablename__ = "provider"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)  # openai, hugging_face, …
    type: Mapped[str]  # cloud_model, hugging_face, url, disk
    name: Mapped[str]
    description: Mapped[str | None]
    icon: Mapped[str | None]
    credential_type: Mapped[str | None]

    __table_args__ = ({"schema": "platform"},)


class CloudModelRow(Base):
    """A cloud model of the catalogue; adding it to the platform makes a `ModelRow`."""

    __tablename__ = "cloud_model"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    provider_id: Mapped[UUID] = mapped_column(ForeignKey("platform.provider.id"), index=True)
    name: Mapped[str]
    uri: Mapped[str] = mapped_column(unique=True)
    description: Mapped[str | None]
    modality: Mapped[list[str]] = mapped_column(ARRAY(TEXT))
    tags: Mapped[list[Any]] = mapped_column(JSONB, server_default=text("'[]'"))
    context_length: Mapped[int | None]
    max_output: Mapped[int | None]
    input_price: Mapped[float | None]  # US dollars per million tokens
    output_price: Mapped[float | None]
    deprecated: Mapped[bool] = mapped_column(server_default="false")

    __table_args__ = (Index("ix_cloud_model_name", "name", "id"), {"schema": "platform"})


class ModelRow(Base):
    """A model of the platform. `project_id` null: everyone may use it. Its name is its own while it lives."""

    __tablename__ = "model"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    provider_type: Mapped[str]
    provider_id: Mapped[UUID | None] = mapped_column(ForeignKey("platform.provider.id"))
    cloud_model_id: Mapped[UUID | None] = mapped_column(ForeignKey("platform.cloud_model.id"))
    uri: Mapped[str | None]
    author: Mapped[str | None]
    description: Mapped[str | None]
    icon: Mapped[str | None]
    tags: Mapped[list[Any]] = mapped_column(JSONB, server_default=text("'[]'"))
    modality: Mapped[list[str]] = mapped_column(ARRAY(TEXT), server_default="{}")
    state: Mapped[str]
    reason: Mapped[str | None]
    source_revision: Mapped[str | None]  # the commit that was imported
    digest: Mapped[str | None]  # of the manifest, once it is claimed
    size: Mapped[int | None] = mapped_column(BigInteger)
    facts: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))  # ModelMetadata
    scan_status: Mapped[str | None]  # of the latest ended scan of this digest
    credential_id: Mapped[UUID | None] = mapped_column(ForeignKey("platform.credential.id", ondelete="SET NULL"))
    project_id: Mapped[UUID | None] = mapped_column(ForeignKey("platform.project.id"))
    created_by: Mapped[UUID | None]
    created_at: Mapped[Created]
    updated_at: Mapped[Created]
    deleted_at: Mapped[datetime | None]
    revision: Mapped[int] = mapped_column(server_default="1")

    __table_args__ = (
        CheckConstraint(one_of("state", MODEL_STATES), name="state"),
        Index("uq_model_name", "name", unique=True, postgresql_where=text("state IN ('importing', 'active')")),
        Index("ix_model_created", "created_at", "id"),
        Index("ix_model_list_name", "name", "id"),
        {"schema": "platform"},
    )


class ModelFileRow(Base):
    """The files of living models, and those that an import has claimed: a blob is freed when no row names it any more."""

    __tablename__ = "model_file"

    model_id: Mapped[UUID] = mapped_column(ForeignKey("platform.model.id", ondelete="CASCADE"), primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(index=True)

    __table_args__ = ({"schema": "platform"},)


class ScanRow(Base):
    """One scan of one digest. `report` is the whole `ScanReport`, once it has ended."""

    __tablename__ = "scan"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    model_id: Mapped[UUID] = mapped_column(ForeignKey("platform.model.id", ondelete="CASCADE"))
    job_id: Mapped[UUID]
    status: Mapped[str]
    digest: Mapped[str]
    report: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    reason: Mapped[str | None]
    created_at: Mapped[Created]
    ended_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(one_of("status", SCAN_STATES), name="status"),
        Index("uq_scan_live", "model_id", unique=True, postgresql_where=text("status = 'running'")),
        Index("ix_scan_model", "model_id", "created_at"),
        {"schema": "platform"},
    )


class ScanOverrideRow(Base):
    """An admin's word that a digest may be deployed in spite of its scan, or without one."""

    __tablename__ = "scan_override"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    model_id: Mapped[UUID] = mapped_column(ForeignKey("platform.model.id", ondelete="CASCADE"), index=True)
    digest: Mapped[str]
    reason: Mapped[str]
    created_by: Mapped[UUID]
    created_at: Mapped[Created]
    revoked_at: Mapped[datetime | None]

    __table_args__ = ({"schema": "platform"},)
