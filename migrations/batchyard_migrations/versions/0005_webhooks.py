"""Webhooks: endpoints, the URLs that jobs and bulks name, and the outbox."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# SQLite's rowid must be declared INTEGER to be an alias of the primary key.
ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("bulks", sa.Column("webhook", sa.Text(), nullable=True))
    op.add_column("bulks", sa.Column("finished_at", sa.BigInteger(), nullable=True))
    _index("bulks_unfinished", "bulks", ["id"], where="finished_at IS NULL")
    op.create_table(
        "webhooks",
        sa.Column("id", ID, autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("url", sa.Text(), nullable=True),
        sa.Column("events", sa.Integer(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("former_secret", sa.Text(), nullable=True),
        sa.Column("former_until", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("disabled_at", sa.BigInteger(), nullable=True),
        sa.Column("disabled_because", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("webhooks_tenant", "webhooks", ["tenant_id"])
    _index("webhooks_named_by_jobs", "webhooks", ["tenant_id"], where="url IS NULL", unique=True)
    op.create_table(
        "job_webhooks",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job_id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("webhook_id", sa.BigInteger(), nullable=False),
        sa.Column("subject_id", sa.BigInteger(), nullable=False),
        sa.Column("event", sa.SmallInteger(), nullable=False),
        sa.Column("url", sa.Text(), nullable=True),
        sa.Column("state", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("subject_id", "webhook_id"),
    )
    _index("webhook_deliveries_due", "webhook_deliveries", ["webhook_id", "due_at"], where="state = 0")
    op.create_index("webhook_deliveries_tenant", "webhook_deliveries", ["tenant_id", "id"])


def _index(name: str, table: str, columns: list[str], *, where: str, unique: bool = False) -> None:
    condition = sa.text(where)
    op.create_index(name, table, columns, unique=unique, sqlite_where=condition, postgresql_where=condition)


def downgrade() -> None:
    for table in ("webhook_deliveries", "job_webhooks", "webhooks"):
        op.drop_table(table)
    op.drop_index("bulks_unfinished", table_name="bulks")
    op.drop_column("bulks", "finished_at")
    op.drop_column("bulks", "webhook")
