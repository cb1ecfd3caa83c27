"""the trace of a job, and an index for jobs that need a hand"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("job", sa.Column("traceparent", sa.Text(), nullable=True), schema="jobs")
    op.create_index(
        "ix_job_cleanup", "job", ["kind"], schema="jobs", postgresql_where=sa.text("state = 'cleanup_required'")
    )


def downgrade() -> None:
    op.drop_index("ix_job_cleanup", table_name="job", schema="jobs")
    op.drop_column("job", "traceparent", schema="jobs")
