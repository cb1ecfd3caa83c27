"""workflow servers and the runs that they tell of"""

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def _created(name: str) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False)


def _moment(name: str, *, nullable: bool = True) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "workflow_server",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("process", sa.Text(), nullable=True),
        sa.Column("url", sa.Text(), nullable=True),
        sa.Column("version", sa.Text(), nullable=True),
        sa.Column("workflows", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("position", sa.Text(), nullable=True),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=False),
        _created("created_at"),
        _created("updated_at"),
        _created("online_since"),
        _created("seen_at"),
        _moment("stopped_at"),
        sa.Column("revision", sa.Integer(), server_default="1", nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["platform.project.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workflow_server")),
        sa.UniqueConstraint("project_id", "name", "instance", name="uq_workflow_server_instance"),
        schema="platform",
    )
    for name, columns in (
        ("ix_workflow_server_created", ["created_at", "id"]),
        ("ix_workflow_server_name", ["name", "id"]),
        ("ix_workflow_server_seen", ["seen_at", "id"]),
    ):
        op.create_index(name, "workflow_server", columns, schema="platform")
    _runs()


def _runs() -> None:
    op.create_table(
        "workflow_run",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("server_id", sa.Uuid(), nullable=False),
        sa.Column("handler_id", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("workflow", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        _moment("started_at", nullable=False),
        _moment("updated_at", nullable=False),
        _moment("completed_at"),
        sa.Column("started_by", sa.Uuid(), nullable=True),
        sa.Column("started_key_id", sa.Uuid(), nullable=True),
        _moment("cancel_asked_at"),
        sa.Column("cancel_asked_by", sa.Uuid(), nullable=True),
        _moment("cancel_taken_at"),
        _created("confirmed_at"),
        _created("created_at"),
        sa.CheckConstraint(
            "status IN ('running', 'completed', 'failed', 'cancelled', 'unknown')", name=op.f("ck_workflow_run_status")
        ),
        sa.ForeignKeyConstraint(["project_id"], ["platform.project.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["server_id"], ["platform.workflow_server.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workflow_run")),
        sa.UniqueConstraint("server_id", "run_id", name="uq_workflow_run_run_id"),
        schema="platform",
    )
    for name, columns, where in (
        ("ix_workflow_run_started", ["started_at", "id"], None),
        ("ix_workflow_run_updated", ["updated_at", "id"], None),
        ("ix_workflow_run_project", ["project_id", "started_at", "id"], None),
        ("ix_workflow_run_server", ["server_id", "started_at", "id"], None),
        ("ix_workflow_run_open", ["server_id", "confirmed_at"], "status = 'running'"),
        ("ix_workflow_run_created", ["created_at"], None),
    ):
        condition = sa.text(where) if where else None
        op.create_index(name, "workflow_run", columns, schema="platform", postgresql_where=condition)


def downgrade() -> None:
    op.drop_table("workflow_run", schema="platform")
    op.drop_table("workflow_server", schema="platform")
