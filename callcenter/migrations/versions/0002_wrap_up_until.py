"""When an agent's wrap-up ends: a restarted engine goes on with it instead of ending it at once."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("agents_now", sa.Column("wrap_up_until", sa.DateTime(timezone=True), nullable=True))
