"""Results that serve other jobs which compute the same."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "computations",
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("keep_ms", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "followers",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("computing_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job_id"),
        sqlite_with_rowid=False,
    )
    op.create_index("followers_computing", "followers", ["computing_id"])
    op.add_column("job_results", sa.Column("computed_by", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("job_results", "computed_by")
    op.drop_table("followers")
    op.drop_table("computations")
