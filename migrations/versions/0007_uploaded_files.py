"""files that are uploaded for flows"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.alter_column("artifact", "execution_id", nullable=True, schema="flow")
    op.alter_column("artifact", "task", nullable=True, schema="flow")
    op.add_column("artifact", sa.Column("project_id", sa.Uuid(), nullable=True), schema="flow")
    op.add_column("artifact", sa.Column("used_at", sa.DateTime(timezone=True), nullable=True), schema="flow")
    op.create_foreign_key(
        op.f("fk_artifact_project_id"), "artifact", "project", ["project_id"], ["id"],
        source_schema="flow", referent_schema="platform", ondelete="CASCADE",
    )  # fmt: skip
    op.create_check_constraint(
        op.f("ck_artifact_owner"), "artifact", "(execution_id IS NULL) <> (project_id IS NULL)", schema="flow"
    )
    uploaded = sa.text("project_id IS NOT NULL")
    for name, columns in (
        ("ix_artifact_project", ["project_id", "created_at", "id"]), ("ix_artifact_uploaded", ["created_at", "id"])
    ):  # fmt: skip
        op.create_index(name, "artifact", columns, schema="flow", postgresql_where=uploaded)
    op.create_table(
        "file_use",
        sa.Column("execution_id", sa.Uuid(), nullable=False),
        sa.Column("artifact_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(
            ["execution_id"], ["flow.execution.id"], name=op.f("fk_file_use_execution_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["artifact_id"], ["flow.artifact.id"], name=op.f("fk_file_use_artifact_id")),
        sa.PrimaryKeyConstraint("execution_id", "artifact_id", name=op.f("pk_file_use")),
        schema="flow",
    )
    op.create_index(op.f("ix_file_use_artifact_id"), "file_use", ["artifact_id"], schema="flow")


def downgrade() -> None:
    op.drop_table("file_use", schema="flow")
    op.execute("DELETE FROM flow.artifact WHERE execution_id IS NULL")
    op.drop_index("ix_artifact_uploaded", table_name="artifact", schema="flow")
    op.drop_index("ix_artifact_project", table_name="artifact", schema="flow")
    op.drop_constraint(op.f("ck_artifact_owner"), "artifact", schema="flow", type_="check")
    op.drop_constraint(op.f("fk_artifact_project_id"), "artifact", schema="flow", type_="foreignkey")
    op.drop_column("artifact", "used_at", schema="flow")
    op.drop_column("artifact", "project_id", schema="flow")
    op.alter_column("artifact", "task", nullable=False, schema="flow")
    op.alter_column("artifact", "execution_id", nullable=False, schema="flow")
