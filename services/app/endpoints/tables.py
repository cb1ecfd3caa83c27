"""Endpoints: a model served on a cluster. What should be (`desired`) and what is (`observed`) are kept apart."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.base import Base, Created, one_of

ENDPOINT_STATES = (
    "pending", "deploying", "running", "updating", "degraded", "unavailable", "stopped", "failed", "deleting", "deleted",
)  # fmt: skip


class EndpointRow(Base):
    """`state` is derived from the job's phase, `desired` and `observed` by one function (`services.app.endpoints.state`).

    `desired`: `{replicas, generation, per_worker}`; `observed`: the runtime's last `Observation`.
    """

    __tablename__ = "endpoint"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    project_id: Mapped[UUID] = mapped_column(ForeignKey("platform.project.id"))
    name: Mapped[str]
    slug: Mapped[str]  # the name as a DNS label
    model_id: Mapped[UUID] = mapped_column(ForeignKey("platform.model.id"), index=True)
    cluster_id: Mapped[UUID] = mapped_column(ForeignKey("platform.cluster.id"), index=True)
    template_id: Mapped[UUID | None] = mapped_column(ForeignKey("platform.template.id", ondelete="SET NULL"))
    credential_id: Mapped[UUID | None] = mapped_column(ForeignKey("platform.credential.id", ondelete="SET NULL"))
    digest: Mapped[str | None]  # of the model's files that are served: the one that was scanned
    engine: Mapped[str | None]
    deploy_config: Mapped[dict[str, Any]] = mapped_column(JSONB)
    tuning: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))  # settings of the engine
    phase: Mapped[str]  # deploying, serving, updating, stopped, failed, deleting, deleted: what the jobs have done
    desired: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    observed: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    state: Mapped[str]
    reason: Mapped[str | None]
    generation: Mapped[int] = mapped_column(BigInteger, server_default="1")
    sealed: Mapped[bytes]  # the key with which the gateway speaks to the workers
    published_at: Mapped[datetime | None]
    created_by: Mapped[UUID | None]
    created_at: Mapped[Created]
    updated_at: Mapped[Created]
    deleted_at: Mapped[datetime | None]
    revision: Mapped[int] = mapped_column(server_default="1")

    __table_args__ = (
        CheckConstraint(one_of("state", ENDPOINT_STATES), name="state"),
        Index(
            "uq_endpoint_slug",
            "project_id",
            "slug",
            unique=True,
            postgresql_where=text("state NOT IN ('failed', 'deleted')"),
        ),
        Index("ix_endpoint_created", "created_at", "id"),
        {"schema": "platform"},
    )


class EndpointEventRow(Base):
    """What happened to an endpoint; added, never changed. The oldest go by and by (`services.app.endpoints.events`)."""

    __tablename__ = "endpoint_event"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    endpoint_id: Mapped[UUID] = mapped_column(ForeignKey("platform.endpoint.id", ondelete="CASCADE"))
    at: Mapped[Created]
    type: Mapped[str]  # state, worker_restarted, healed, heal_failed
    state: Mapped[str]  # of the endpoint, then
    message: Mapped[str | None]

    __table_args__ = (
        Index("ix_endpoint_event_endpoint", "endpoint_id", "at", "id"),
        {"schema": "platform"},
    )
