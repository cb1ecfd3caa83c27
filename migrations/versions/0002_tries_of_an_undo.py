"""count how often the undo of a step has begun"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("step", sa.Column("undo_tries", sa.Integer(), server_default="0", nullable=False), schema="jobs")


def downgrade() -> None:
    op.drop_column("step", "undo_tries", schema="jobs")
