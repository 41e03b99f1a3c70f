"""Where a consumer runs, and when it heard that its machine is taken back."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("consumers", sa.Column("zone", sa.Text(), server_default=sa.text("''"), nullable=False))
    op.add_column("consumers", sa.Column("preempted_at", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("consumers", "preempted_at")
    op.drop_column("consumers", "zone")
