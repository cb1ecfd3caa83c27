"""runs that services drive"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("job", sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True), schema="jobs")
    op.add_column("process", sa.Column("service", sa.Text(), nullable=True), schema="jobs")
    op.create_table(
        "instance",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("job_id", "fence", name=op.f("pk_instance")),
        schema="jobs",
    )


def downgrade() -> None:
    op.drop_table("instance", schema="jobs")
    op.drop_column("process", "service", schema="jobs")
    op.drop_column("job", "lease_until", schema="jobs")
