"""The first schema: every table of `batchyard.store.tables`, which says what they are for."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# SQLite's rowid must be declared INTEGER to be an alias of the primary key.
ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

TABLES = (
    "api_keys",
    "backlog",
    "backlog_deltas",
    "bulk_chunks",
    "bulk_counts",
    "bulk_counts_deltas",
    "bulks",
    "consumers",
    "counters",
    "decisions",
    "flushes",
    "idempotency",
    "job_inputs",
    "job_labels",
    "job_payloads",
    "job_results",
    "jobs",
    "leases",
    "model_versions",
    "payload_leftovers",
    "payloads",
    "queues",
    "tenants",
    "tombstones",
    "usage",
    "usage_deltas",
)


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", sa.Text(), server_default=sa.text("'jobs'"), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("replaced_by", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("prefix"),
    )
    op.create_table(
        "backlog",
        sa.Column("queue_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("priority", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("state", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("bucket", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("jobs", sa.BigInteger(), nullable=False),
        sa.Column("cost", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("queue_id", "tenant_id", "priority", "state", "bucket"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "backlog_deltas",
        sa.Column("delta_id", ID, autoincrement=True, nullable=False),
        sa.Column("queue_id", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("bucket", sa.BigInteger(), nullable=False),
        sa.Column("jobs", sa.BigInteger(), nullable=False),
        sa.Column("cost", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("delta_id"),
    )
    op.create_table(
        "bulk_chunks",
        sa.Column("bulk_id", sa.BigInteger(), nullable=False),
        sa.Column("first_index", sa.BigInteger(), nullable=False),
        sa.Column("first_id", sa.BigInteger(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("bulk_id", "first_index"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "bulk_counts",
        sa.Column("bulk_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("state", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("jobs", sa.BigInteger(), nullable=False),
        sa.Column("cost", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("bulk_id", "state"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "bulk_counts_deltas",
        sa.Column("delta_id", ID, autoincrement=True, nullable=False),
        sa.Column("bulk_id", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("jobs", sa.BigInteger(), nullable=False),
        sa.Column("cost", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("delta_id"),
    )
    op.create_table(
        "bulks",
        sa.Column("id", ID, autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("queue_id", sa.Integer(), nullable=False),
        sa.Column("defaults", sa.LargeBinary(), nullable=False),
        sa.Column("chunk_size", sa.Integer(), nullable=False),
        sa.Column("jobs", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("sealed_at", sa.BigInteger(), nullable=True),
        sa.Column("paused", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("sweep", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("swept", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("retired", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "bulks_sweep",
        "bulks",
        ["sweep", "id"],
        unique=False,
        sqlite_where=sa.text("sweep > 0"),
        postgresql_where=sa.text("sweep > 0"),
    )
    op.create_index("bulks_tenant", "bulks", ["tenant_id", "id"], unique=False)
    op.create_table(
        "consumers",
        sa.Column("id", ID, autoincrement=False, nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("capacity", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("queue_ids", sa.Text(), nullable=False),
        sa.Column("stats", sa.Text(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("ready_at", sa.BigInteger(), nullable=True),
        sa.Column("lease_until", sa.BigInteger(), nullable=False),
        sa.Column("executing", sa.Text(), nullable=True),
        sa.Column("cause", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "flushes",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("bulk_id", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.Column("job_ids", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("flushes_seq", "flushes", ["bulk_id", "seq"], unique=False)
    op.create_index(
        "flushes_unnumbered",
        "flushes",
        ["id"],
        unique=False,
        sqlite_where=sa.text("seq IS NULL"),
        postgresql_where=sa.text("seq IS NULL"),
    )
    op.create_table(
        "idempotency",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("bulk_id", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("first_id", sa.BigInteger(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "bulk_id", "key"),
        sqlite_with_rowid=False,
    )
    op.create_index("idempotency_first", "idempotency", ["first_id"], unique=False)
    op.create_table(
        "job_inputs",
        sa.Column("job_id", ID, autoincrement=False, nullable=False),
        sa.Column("custom_id", sa.Text(), nullable=True),
        sa.Column("labels", sa.Text(), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=True),
        sa.Column("trace_context", sa.Text(), nullable=True),
        sa.Column("affinity_key", sa.Text(), nullable=True),
        sa.Column("max_cost", sa.BigInteger(), nullable=True),
        sa.Column("input_digest", sa.LargeBinary(), nullable=True),
        sa.Column("redrive_of", sa.BigInteger(), nullable=True),
        sa.Column("params", sa.LargeBinary(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_table(
        "job_labels",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "label", "job_id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "job_payloads",
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("payload_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "payload_id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "job_results",
        sa.Column("job_id", ID, autoincrement=False, nullable=False),
        sa.Column("format", sa.SmallInteger(), nullable=False),
        sa.Column("cost", sa.BigInteger(), nullable=False),
        sa.Column("device_us", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("completed_by", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", ID, autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("queue_id", sa.Integer(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failures", sa.SmallInteger(), nullable=False),
        sa.Column("crashes", sa.SmallInteger(), nullable=False),
        sa.Column("preemptions", sa.SmallInteger(), nullable=False),
        sa.Column("max_failures", sa.SmallInteger(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("suspect", sa.Boolean(), nullable=False),
        sa.Column("unexplained", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cost_estimate", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("bulk_id", sa.BigInteger(), nullable=True),
        sa.Column("bulk_index", sa.BigInteger(), nullable=True),
        sa.Column("deadline", sa.BigInteger(), nullable=True),
        sa.Column("start_by", sa.BigInteger(), nullable=True),
        sa.Column("not_before", sa.BigInteger(), nullable=True),
        sa.Column("ticketed_at", sa.BigInteger(), nullable=True),
        sa.Column("owner", sa.BigInteger(), nullable=True),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "jobs_deadline",
        "jobs",
        ["deadline"],
        unique=False,
        sqlite_where=sa.text("deadline IS NOT NULL AND (state = 0 OR state = 2)"),
        postgresql_where=sa.text("deadline IS NOT NULL AND (state = 0 OR state = 2)"),
    )
    op.create_index(
        "jobs_due",
        "jobs",
        ["not_before"],
        unique=False,
        sqlite_where=sa.text("state = 2"),
        postgresql_where=sa.text("state = 2"),
    )
    op.create_index(
        "jobs_head",
        "jobs",
        ["queue_id", "tenant_id", "priority", "id"],
        unique=False,
        sqlite_where=sa.text("state = 0"),
        postgresql_where=sa.text("state = 0"),
    )
    op.create_index(
        "jobs_owned",
        "jobs",
        ["owner"],
        unique=False,
        sqlite_where=sa.text("state = 1"),
        postgresql_where=sa.text("state = 1"),
    )
    op.create_index(
        "jobs_rare",
        "jobs",
        ["tenant_id", "state", "id"],
        unique=False,
        sqlite_where=sa.text("state = 2 OR state > 3"),
        postgresql_where=sa.text("state = 2 OR state > 3"),
    )
    op.create_index(
        "jobs_urgent",
        "jobs",
        ["queue_id", "tenant_id", "start_by"],
        unique=False,
        sqlite_where=sa.text("state = 0 AND start_by IS NOT NULL"),
        postgresql_where=sa.text("state = 0 AND start_by IS NOT NULL"),
    )
    op.create_table(
        "decisions",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("replicas", sa.Integer(), nullable=False),
        sa.Column("live", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("backlog_jobs", sa.BigInteger(), nullable=False),
        sa.Column("backlog_seconds", sa.Float(), nullable=True),
        sa.Column("decided_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pool"),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("holder", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "model_versions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("weight", sa.Float(), server_default=sa.text("1"), nullable=False),
        sa.Column("active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("default_lane", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("runtime", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=True),
        sa.Column("input_schema", sa.Text(), nullable=True),
        sa.Column("cost_unit", sa.Text(), server_default=sa.text("'bytes'"), nullable=False),
        sa.Column("units_per_byte", sa.Float(), nullable=True),
        sa.Column("seconds_per_unit", sa.Float(), nullable=True),
        sa.Column("load_seconds", sa.Float(), nullable=True),
        sa.Column("load_error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("model", "version"),
    )
    op.create_table(
        "payload_leftovers",
        sa.Column("id", ID, autoincrement=False, nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("expected", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("payload_leftovers_due", "payload_leftovers", ["due_at"], unique=False)
    op.create_table(
        "payloads",
        sa.Column("id", ID, autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("jobs", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "payloads_unused",
        "payloads",
        ["created_at"],
        unique=False,
        sqlite_where=sa.text("jobs = 0"),
        postgresql_where=sa.text("jobs = 0"),
    )
    op.create_table(
        "queues",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_version_id", sa.Integer(), nullable=False),
        sa.Column("lane", sa.SmallInteger(), nullable=False),
        sa.Column("paused", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("model_version_id", "lane"),
    )
    op.create_table(
        "tenants",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("weight", sa.Float(), server_default=sa.text("1"), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "tombstones",
        sa.Column("id", ID, autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("retired_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("tombstones_retired", "tombstones", ["retired_at"], unique=False)
    op.create_table(
        "usage",
        sa.Column("tenant_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("queue_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("hour", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("jobs", sa.BigInteger(), nullable=False),
        sa.Column("cost", sa.BigInteger(), nullable=False),
        sa.Column("device_us", sa.BigInteger(), nullable=False),
        sa.Column("input_bytes", sa.BigInteger(), nullable=False),
        sa.Column("result_bytes", sa.BigInteger(), nullable=False),
        sa.Column("retired_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "queue_id", "hour"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "usage_deltas",
        sa.Column("delta_id", ID, autoincrement=True, nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("queue_id", sa.Integer(), nullable=False),
        sa.Column("hour", sa.Integer(), nullable=False),
        sa.Column("jobs", sa.BigInteger(), nullable=False),
        sa.Column("cost", sa.BigInteger(), nullable=False),
        sa.Column("device_us", sa.BigInteger(), nullable=False),
        sa.Column("input_bytes", sa.BigInteger(), nullable=False),
        sa.Column("result_bytes", sa.BigInteger(), nullable=False),
        sa.Column("retired_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("delta_id"),
    )
    op.execute("INSERT INTO tenants (name, created_at) VALUES ('default', 0)")
    if op.get_bind().dialect.name == "postgresql":
        _tune_postgres()


def _tune_postgres() -> None:
    """How Postgres keeps the tables whose rows change over and over."""
    # A job's row is written twice more. With room on its page it stays there, and the table ends no larger.
    op.execute("ALTER TABLE jobs SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05)")
    # Few rows, changed all the time, in columns without an index.
    for table in ("backlog", "bulk_counts", "bulks", "consumers", "counters", "leases", "usage"):
        op.execute(f"ALTER TABLE {table} SET (fillfactor = 50)")
    # Rows that live until the next fold: what they leave behind is cleaned up by count, as the tables are never long.
    for table in ("backlog_deltas", "bulk_counts_deltas", "usage_deltas"):
        op.execute(
            f"ALTER TABLE {table} SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, "
            "autovacuum_vacuum_cost_delay = 0)"
        )
    # Packed ids are not worth compressing.
    op.execute("ALTER TABLE flushes ALTER COLUMN job_ids SET STORAGE EXTERNAL")


def downgrade() -> None:
    for table in TABLES:
        op.drop_table(table)
