"""flows, their versions and executions"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.execute("CREATE SCHEMA IF NOT EXISTS flow")
    op.add_column("api_key", sa.Column("job_id", sa.Uuid(), nullable=True), schema="platform")
    op.create_index(op.f("ix_api_key_job_id"), "api_key", ["job_id"], schema="platform")
    op.create_foreign_key(
        op.f("fk_api_key_job_id"), "api_key", "job", ["job_id"], ["id"],
        source_schema="platform", referent_schema="jobs", ondelete="CASCADE",
    )  # fmt: skip
    op.create_table(
        "flow",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("slug", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("dialect", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), server_default="1", nullable=False),
        sa.Column("created_by", sa.Uuid(), nullable=True),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column(
            "updated_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["platform.project.id"], name=op.f("fk_flow_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_flow")),
        sa.UniqueConstraint("slug", name=op.f("uq_flow_slug")),
        schema="flow",
    )
    op.create_index("ix_flow_created", "flow", ["created_at", "id"], unique=False, schema="flow")
    op.create_index(
        "ix_flow_live",
        "flow",
        ["project_id"],
        unique=False,
        schema="flow",
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index("ix_flow_name", "flow", ["name", "id"], unique=False, schema="flow")
    op.create_index("ix_flow_updated", "flow", ["updated_at", "id"], unique=False, schema="flow")
    op.create_table(
        "execution",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("slug", sa.Text(), nullable=False),
        sa.Column("flow_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("inputs", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("webhook_url", sa.Text(), nullable=True),
        sa.Column("trigger", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="PENDING", nullable=False),
        sa.Column("parent", sa.Uuid(), nullable=True),
        sa.Column("parent_task", sa.Text(), nullable=True),
        sa.Column("parent_attempt", sa.Integer(), nullable=True),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint(
            "status IN ('PENDING', 'RUNNING', 'COMPLETED', 'FAILED', 'CANCELLED')", name=op.f("ck_execution_status")
        ),
        sa.CheckConstraint(
            "trigger IN ('api', 'schedule', 'webhook', 'parent', 'retry')", name=op.f("ck_execution_trigger")
        ),
        sa.ForeignKeyConstraint(["flow_id"], ["flow.flow.id"], name=op.f("fk_execution_flow_id")),
        sa.ForeignKeyConstraint(
            ["id"],
            ["jobs.job.id"],
            name=op.f("fk_execution_id"),
            ondelete="CASCADE",
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.ForeignKeyConstraint(
            ["parent"], ["flow.execution.id"], name=op.f("fk_execution_parent"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_execution")),
        sa.UniqueConstraint("slug", name=op.f("uq_execution_slug")),
        schema="flow",
    )
    op.create_index("ix_execution_created", "execution", ["created_at", "id"], unique=False, schema="flow")
    op.create_index("ix_execution_flow", "execution", ["flow_id", "created_at", "id"], unique=False, schema="flow")
    op.create_index(
        "ix_execution_live",
        "execution",
        ["project_id"],
        unique=False,
        schema="flow",
        postgresql_where=sa.text("status IN ('PENDING', 'RUNNING')"),
    )
    op.create_index(
        "ix_execution_project", "execution", ["project_id", "created_at", "id"], unique=False, schema="flow"
    )
    op.create_index(
        "uq_execution_child",
        "execution",
        ["parent", "parent_task"],
        unique=True,
        schema="flow",
        postgresql_where=sa.text("parent IS NOT NULL"),
    )
    op.create_table(
        "version",
        sa.Column("flow_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("definition", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("dialect", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Uuid(), nullable=True),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(["flow_id"], ["flow.flow.id"], name=op.f("fk_version_flow_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("flow_id", "number", name=op.f("pk_version")),
        schema="flow",
    )
    op.create_table(
        "artifact",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("execution_id", sa.Uuid(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(
            ["execution_id"], ["flow.execution.id"], name=op.f("fk_artifact_execution_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artifact")),
        schema="flow",
    )
    op.create_index(op.f("ix_artifact_execution_id"), "artifact", ["execution_id"], unique=False, schema="flow")
    op.create_index(op.f("ix_artifact_sha256"), "artifact", ["sha256"], unique=False, schema="flow")
    op.create_table(
        "secret",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["id"], ["flow.execution.id"], name=op.f("fk_secret_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_secret")),
        schema="flow",
    )


def downgrade() -> None:
    op.drop_constraint(op.f("fk_api_key_job_id"), "api_key", schema="platform", type_="foreignkey")
    op.drop_index(op.f("ix_api_key_job_id"), table_name="api_key", schema="platform")
    op.execute("DELETE FROM platform.api_key WHERE job_id IS NOT NULL")
    op.drop_column("api_key", "job_id", schema="platform")
    op.drop_table("secret", schema="flow")
    op.drop_index(op.f("ix_artifact_sha256"), table_name="artifact", schema="flow")
    op.drop_index(op.f("ix_artifact_execution_id"), table_name="artifact", schema="flow")
    op.drop_table("artifact", schema="flow")
    op.drop_table("version", schema="flow")
    op.drop_index(
        "uq_execution_child", table_name="execution", schema="flow", postgresql_where=sa.text("parent IS NOT NULL")
    )
    op.drop_index("ix_execution_project", table_name="execution", schema="flow")
    op.drop_index(
        "ix_execution_live",
        table_name="execution",
        schema="flow",
        postgresql_where=sa.text("status IN ('PENDING', 'RUNNING')"),
    )
    op.drop_index("ix_execution_flow", table_name="execution", schema="flow")
    op.drop_index("ix_execution_created", table_name="execution", schema="flow")
    op.drop_table("execution", schema="flow")
    op.drop_index("ix_flow_updated", table_name="flow", schema="flow")
    op.drop_index("ix_flow_name", table_name="flow", schema="flow")
    op.drop_index("ix_flow_live", table_name="flow", schema="flow", postgresql_where=sa.text("deleted_at IS NULL"))
    op.drop_index("ix_flow_created", table_name="flow", schema="flow")
    op.drop_table("flow", schema="flow")
