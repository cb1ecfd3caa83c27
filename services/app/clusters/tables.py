"""Clusters: this machine, and registered Kubernetes."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.base import Base, Created, one_of

CLUSTER_STATES = ("registering", "available", "unavailable", "error", "deleting", "deleted")


class ClusterRow(Base):
    """`uid` is what the cluster itself is known by: the UID of its kube-system namespace, or this machine's id."""

    __tablename__ = "cluster"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    kind: Mapped[str]  # local, kubernetes
    icon: Mapped[str | None]
    ingress_url: Mapped[str | None]
    uid: Mapped[str | None]
    state: Mapped[str]
    reason: Mapped[str | None]
    facts: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    access: Mapped[dict[str, Any]] = mapped_column(
        JSONB, server_default=text("'{}'")
    )  # what may be shown of the kubeconfig
    sealed: Mapped[bytes | None]  # the kubeconfig
    heal: Mapped[bool] = mapped_column(server_default=text("true"))  # whether what others change there is put right
    epoch: Mapped[int] = mapped_column(server_default="0")  # of the observer whose word counts
    observed_at: Mapped[datetime | None]
    created_by: Mapped[UUID | None]
    created_at: Mapped[Created]
    updated_at: Mapped[Created]
    deleted_at: Mapped[datetime | None]
    revision: Mapped[int] = mapped_column(server_default="1")

    __table_args__ = (
        CheckConstraint(one_of("state", CLUSTER_STATES), name="state"),
        Index("uq_cluster_name", "name", unique=True, postgresql_where=text("state NOT IN ('deleted', 'error')")),
        Index("uq_cluster_uid", "uid", unique=True, postgresql_where=text("state <> 'deleted' AND uid IS NOT NULL")),
        {"schema": "platform"},
    )


class ClusterAccessRow(Base):
    """New credentials of a cluster until they have been checked. `id` is that of the job that checks them."""

    __tablename__ = "cluster_access"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    cluster_id: Mapped[UUID] = mapped_column(ForeignKey("platform.cluster.id", ondelete="CASCADE"), index=True)
    sealed: Mapped[bytes]  # the kubeconfig
    created_at: Mapped[Created]

    __table_args__ = ({"schema": "platform"},)
