"""keep the settings of an endpoint's engine"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    column = sa.Column("tuning", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False)
    op.add_column("endpoint", column, schema="platform")


def downgrade() -> None:
    op.drop_column("endpoint", "tuning", schema="platform")
