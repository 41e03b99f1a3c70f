"""Why pools have the size they have, what people fixed by hand, what was spent, what scalers learned; jobs that were
preempted, by queue."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

PREEMPTED = sa.text("preemptions > 0 AND (state = 0 OR state = 2)")


def upgrade() -> None:
    op.add_column("decisions", sa.Column("rule", sa.Text(), server_default=sa.text("''"), nullable=False))
    op.add_column("decisions", sa.Column("binding_deadline", sa.BigInteger(), nullable=True))
    op.add_column(
        "decisions", sa.Column("unmeetable_jobs", sa.BigInteger(), server_default=sa.text("0"), nullable=False)
    )
    op.add_column("decisions", sa.Column("zones", sa.Text(), server_default=sa.text("'{}'"), nullable=False))
    op.create_table(
        "pool_overrides",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("pinned", sa.Integer(), nullable=True),
        sa.Column("paused", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("pool"),
    )
    op.create_table(
        "spend",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("hour", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("replica_seconds", sa.Float(), nullable=False),
        sa.Column("dollars", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("pool", "hour"),
    )
    op.create_table(
        "learned",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_index("jobs_preempted", "jobs", ["queue_id"], sqlite_where=PREEMPTED, postgresql_where=PREEMPTED)


def downgrade() -> None:
    op.drop_index("jobs_preempted", "jobs")
    for table in ("learned", "spend", "pool_overrides"):
        op.drop_table(table)
    for column in ("zones", "unmeetable_jobs", "binding_deadline", "rule"):
        op.drop_column("decisions", column)
