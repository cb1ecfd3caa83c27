"""webhooks, schedules and triggers of flows"""

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def _created(name: str) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False)


def _project() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["project_id"], ["platform.project.id"], ondelete="CASCADE")


def upgrade() -> None:
    op.create_table(
        "webhook",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("events", postgresql.ARRAY(sa.TEXT()), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("enabled", sa.Boolean(), server_default="true", nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_by", sa.Uuid(), nullable=True),
        _created("created_at"),
        _created("updated_at"),
        sa.Column("revision", sa.Integer(), server_default="1", nullable=False),
        _project(),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook")),
        schema="platform",
    )
    op.create_index(op.f("ix_webhook_project_id"), "webhook", ["project_id"], schema="platform")
    op.create_index("ix_webhook_created", "webhook", ["created_at", "id"], schema="platform")
    op.create_table(
        "webhook_signing_secret",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        _created("created_at"),
        sa.ForeignKeyConstraint(["id"], ["platform.project.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_signing_secret")),
        schema="platform",
    )
    _messages()
    _schedules()
    _triggers()


def _messages() -> None:
    op.create_table(
        "webhook_message",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("webhook_id", sa.Uuid(), nullable=True),
        sa.Column("url", sa.Text(), nullable=True),
        sa.Column("receiver", sa.Uuid(), nullable=False),
        sa.Column("lane", sa.Uuid(), nullable=False),
        sa.Column("topic", sa.Uuid(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("token", sa.Uuid(), nullable=True),
        sa.Column("log", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False),
        _created("offered_at"),
        _created("created_at"),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'failed')", name=op.f("ck_webhook_message_state")),
        _project(),
        sa.ForeignKeyConstraint(["webhook_id"], ["platform.webhook.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_message")),
        schema="platform",
    )
    for name, columns, where in (
        ("ix_webhook_message_project_id", ["project_id"], None),
        ("ix_webhook_message_due", ["next_at", "number"], "state = 'pending'"),
        ("ix_webhook_message_lane", ["lane", "sequence", "number"], "state = 'pending'"),
        ("ix_webhook_message_webhook", ["webhook_id", "created_at", "id"], None),
        ("ix_webhook_message_topic", ["topic"], None),
        ("ix_webhook_message_ended", ["ended_at"], "state <> 'pending'"),
    ):
        condition = sa.text(where) if where else None
        op.create_index(name, "webhook_message", columns, schema="platform", postgresql_where=condition)


def _schedules() -> None:
    op.create_table(
        "schedule",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("flow_id", sa.Uuid(), nullable=False),
        sa.Column("cron", sa.Text(), nullable=False),
        sa.Column("timezone", sa.Text(), nullable=False),
        sa.Column("inputs", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("misfire", sa.Text(), nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        _created("created_at"),
        _created("updated_at"),
        sa.Column("revision", sa.Integer(), server_default="1", nullable=False),
        sa.CheckConstraint("misfire IN ('run_once', 'skip')", name=op.f("ck_schedule_misfire")),
        sa.ForeignKeyConstraint(["flow_id"], ["flow.flow.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schedule")),
        schema="flow",
    )
    op.create_index("ix_schedule_flow_id", "schedule", ["flow_id"], schema="flow")
    due = sa.text("next_at IS NOT NULL")
    op.create_index("ix_schedule_due", "schedule", ["next_at"], schema="flow", postgresql_where=due)
    op.create_table(
        "firing",
        sa.Column("schedule_id", sa.Uuid(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        _created("created_at"),
        sa.ForeignKeyConstraint(["schedule_id"], ["flow.schedule.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("schedule_id", "at", name=op.f("pk_firing")),
        schema="flow",
    )
    op.create_index("ix_firing_created", "firing", ["created_at"], schema="flow")


def _triggers() -> None:
    op.create_table(
        "trigger",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("flow_id", sa.Uuid(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("scheme", sa.Text(), nullable=False),
        sa.Column("mapping", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        _created("created_at"),
        _created("updated_at"),
        sa.Column("revision", sa.Integer(), server_default="1", nullable=False),
        sa.CheckConstraint("scheme IN ('standard', 'github')", name=op.f("ck_trigger_scheme")),
        sa.ForeignKeyConstraint(["flow_id"], ["flow.flow.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trigger")),
        sa.UniqueConstraint("token", name=op.f("uq_trigger_token")),
        schema="flow",
    )
    op.create_index("ix_trigger_flow_id", "trigger", ["flow_id"], schema="flow")
    op.create_table(
        "arrival",
        sa.Column("trigger_id", sa.Uuid(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("execution_id", sa.Text(), nullable=True),
        _created("created_at"),
        sa.ForeignKeyConstraint(["trigger_id"], ["flow.trigger.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("trigger_id", "message_id", name=op.f("pk_arrival")),
        schema="flow",
    )
    op.create_index("ix_arrival_created", "arrival", ["created_at"], schema="flow")


def downgrade() -> None:
    for table in ("arrival", "trigger", "firing", "schedule"):
        op.drop_table(table, schema="flow")
    for table in ("webhook_message", "webhook_signing_secret", "webhook"):
        op.drop_table(table, schema="platform")
