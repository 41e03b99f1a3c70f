"""What each tenant may use."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

LIMITS = {
    "queued_jobs": sa.BigInteger,
    "stored_bytes": sa.BigInteger,
    "requests_per_second": sa.Float,
    "jobs_per_second": sa.Float,
}


def upgrade() -> None:
    for name, kind in LIMITS.items():
        op.add_column("tenants", sa.Column(name, kind(), nullable=True))


def downgrade() -> None:
    for name in LIMITS:
        op.drop_column("tenants", name)
