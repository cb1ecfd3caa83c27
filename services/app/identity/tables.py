"""People, their keys and their logins."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TEXT
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.base import Base, Created, one_of
from shared.jobs.tables import JobRow

ROLES = ("admin", "operator", "member", "viewer")


class UserRow(Base):
    __tablename__ = "user"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    display_name: Mapped[str | None]
    role: Mapped[str]
    disabled_at: Mapped[datetime | None]
    created_at: Mapped[Created]
    revision: Mapped[int] = mapped_column(server_default="1")

    __table_args__ = (
        CheckConstraint(one_of("role", ROLES), name="role"),
        Index("ix_user_created", "created_at", "id"),
        {"schema": "platform"},
    )


class ApiKeyRow(Base):
    """A key is found by its prefix and proved by its hash; the key itself is shown once and not kept.

    One with a `job_id` is not a person's: a job calls endpoints with it, and it goes when the job ends.
    """

    __tablename__ = "api_key"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("platform.user.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    prefix: Mapped[str] = mapped_column(unique=True)
    hash: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(TEXT))
    project_id: Mapped[UUID | None] = mapped_column(ForeignKey("platform.project.id", ondelete="CASCADE"), index=True)
    job_id: Mapped[UUID | None] = mapped_column(ForeignKey(JobRow.id, ondelete="CASCADE"), index=True)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    created_at: Mapped[Created]

    __table_args__ = (Index("ix_api_key_created", "created_at", "id"), {"schema": "platform"})


class LoginRow(Base):
    """A browser's login, made from a key and ended with it. Only the hash of the cookie's value is kept."""

    __tablename__ = "login"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    hash: Mapped[str] = mapped_column(unique=True)
    key_id: Mapped[UUID] = mapped_column(ForeignKey("platform.api_key.id", ondelete="CASCADE"), index=True)
    expires_at: Mapped[datetime]
    created_at: Mapped[Created]

    __table_args__ = (Index("ix_login_expires", "expires_at"), {"schema": "platform"})


class IdempotencyRow(Base):
    """The first answer to a request with an Idempotency-Key; `status` is null while it is in flight.

    `created_at` is moved on while the request is in flight: it says when its process was last alive.
    """

    __tablename__ = "idempotency"

    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    method: Mapped[str] = mapped_column(primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    token: Mapped[UUID]
    status: Mapped[int | None]
    body: Mapped[bytes | None]
    media_type: Mapped[str | None]
    headers: Mapped[dict[str, str] | None] = mapped_column(JSONB)
    created_at: Mapped[Created]

    __table_args__ = (
        Index("ix_idempotency_created", text("created_at")),
        {"schema": "platform"},
    )
