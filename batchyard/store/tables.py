"""The tables. Times are Unix milliseconds by the database's clock; ids of jobs and bulks come from `IdSource`.

`jobs` is hot and narrow: only what orders, claims and fences. Everything written once stands beside it in insert-only
tables. Indexes on `jobs` are partial, so that a finished job costs none of them.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData()

# SQLite's rowid must be declared INTEGER to be an alias of the primary key.
_Id = BigInteger().with_variant(Integer, "sqlite")

counters = Table(
    "counters",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
    comment="Numbers given out once: nodes of id sources",
)

tenants = Table(
    "tenants",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("weight", Float, nullable=False, server_default=text("1")),
    Column("created_at", BigInteger, nullable=False),
    Column("queued_jobs", BigInteger, comment="Limits; NULL: as configured for all, 0: none"),
    Column("stored_bytes", BigInteger),
    Column("requests_per_second", Float),
    Column("jobs_per_second", Float),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("prefix", Text, primary_key=True, comment="The public part, shown in lists"),
    Column("tenant_id", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False, comment="SHA-256 of the whole key; 160 random bits need no salt"),
    Column("scopes", Text, nullable=False, server_default=text("'jobs'")),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("replaced_by", Text, comment="The key that took its place when it was rotated"),
)

model_versions = Table(
    "model_versions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("weight", Float, nullable=False, server_default=text("1"), comment="Share of the bare name's jobs; 0: none"),
    Column("active", Boolean, nullable=False, server_default=text("true"), comment="Stands in the configuration"),
    Column("default_lane", SmallInteger, nullable=False, server_default=text("0")),
    Column("runtime", Text, nullable=False),
    Column("digest", Text, comment="Of what is loaded; set at the first load and never changed while jobs use it"),
    Column("input_schema", Text, comment="JSON Schema; NULL until a consumer has loaded the version"),
    Column("cost_unit", Text, nullable=False, server_default=text("'bytes'")),
    Column("units_per_byte", Float, comment="Learned: exact cost per byte of input"),
    Column("seconds_per_unit", Float, comment="Learned: device seconds per unit of cost on one consumer"),
    Column("load_seconds", Float),
    Column("load_error", Text, comment="Why the last attempt to load it failed; NULL after a success"),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("model", "version"),
)

queues = Table(
    "queues",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("model_version_id", Integer, nullable=False),
    Column("lane", SmallInteger, nullable=False),
    Column("paused", Boolean, nullable=False, server_default=text("false")),
    UniqueConstraint("model_version_id", "lane"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=False),
    Column("tenant_id", Integer, nullable=False),
    Column("queue_id", Integer, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("priority", SmallInteger, nullable=False, comment="0 to 9, 9 first; -1 - p while held by its paused bulk"),
    Column("attempt", Integer, nullable=False),
    Column("failures", SmallInteger, nullable=False),
    Column("crashes", SmallInteger, nullable=False),
    Column("preemptions", SmallInteger, nullable=False),
    Column("max_failures", SmallInteger, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("suspect", Boolean, nullable=False),
    Column(
        "unexplained",
        SmallInteger,
        nullable=False,
        server_default=text("0"),
        comment="Consumers that held it and died of nobody knows what",
    ),
    Column("cost_estimate", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("bulk_id", BigInteger),
    Column("bulk_index", BigInteger, comment="Place in its bulk, or in its call"),
    Column("deadline", BigInteger),
    Column("start_by", BigInteger, comment="Latest safe start"),
    Column("not_before", BigInteger, comment="When a waiting job is due"),
    Column(
        "ticketed_at",
        BigInteger,
        comment="Set at the insert where the submitter ticketed it; the leader keeps its own count",
    ),
    Column("owner", BigInteger, comment="The consumer that holds it, or held it last"),
    Column("started_at", BigInteger, comment="Of the last claim"),
    Column("finished_at", BigInteger),
)

QUEUED, RUNNING, WAITING = (text("state = 0"), text("state = 1"), text("state = 2"))
Index(
    "jobs_head",
    jobs.c.queue_id,
    jobs.c.tenant_id,
    jobs.c.priority,
    jobs.c.id,
    sqlite_where=QUEUED,
    postgresql_where=QUEUED,
)
_URGENT = text("state = 0 AND start_by IS NOT NULL")
Index("jobs_urgent", jobs.c.queue_id, jobs.c.tenant_id, jobs.c.start_by, sqlite_where=_URGENT, postgresql_where=_URGENT)
Index("jobs_owned", jobs.c.owner, sqlite_where=RUNNING, postgresql_where=RUNNING)
Index("jobs_due", jobs.c.not_before, sqlite_where=WAITING, postgresql_where=WAITING)
# Comparisons rather than IN: SQLite tests these at every change of state, and IN costs half a microsecond each.
_DEADLINE = text("deadline IS NOT NULL AND (state = 0 OR state = 2)")
Index("jobs_deadline", jobs.c.deadline, sqlite_where=_DEADLINE, postgresql_where=_DEADLINE)
# The rare half first: of most jobs no more than that is looked at.
_PREEMPTED = text("preemptions > 0 AND (state = 0 OR state = 2)")
Index("jobs_preempted", jobs.c.queue_id, sqlite_where=_PREEMPTED, postgresql_where=_PREEMPTED)
_RARE = text("state = 2 OR state > 3")
Index("jobs_rare", jobs.c.tenant_id, jobs.c.state, jobs.c.id, sqlite_where=_RARE, postgresql_where=_RARE)

# The bodies stand last: SQLite reads the columns before them without following a long row's overflow pages.
job_inputs = Table(
    "job_inputs",
    metadata,
    Column("job_id", _Id, primary_key=True, autoincrement=False),
    Column("custom_id", Text),
    Column("labels", Text, comment="JSON array"),
    Column("created_by", Text),
    Column("trace_context", Text),
    Column("affinity_key", Text),
    Column("max_cost", BigInteger),
    Column("input_digest", LargeBinary),
    Column("redrive_of", BigInteger),
    Column("params", LargeBinary),
    Column("body", LargeBinary, nullable=False, comment="One JSON document"),
)

job_results = Table(
    "job_results",
    metadata,
    Column("job_id", _Id, primary_key=True, autoincrement=False),
    Column("format", SmallInteger, nullable=False, comment="0 JSON, 1 MessagePack with tensors, 2 error (JSON)"),
    Column("cost", BigInteger, nullable=False, comment="Exact, in the model's unit"),
    Column("device_us", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False, comment="The attempt that won"),
    Column("completed_by", BigInteger, nullable=False, comment="The consumer that wrote it"),
    Column("body", LargeBinary, nullable=False),
    Column("computed_by", BigInteger, comment="Served from the cache: the job that computed it; 0: another tenant's"),
)

job_payloads = Table(
    "job_payloads",
    metadata,
    Column("job_id", BigInteger, primary_key=True),
    Column("payload_id", BigInteger, primary_key=True),
    comment="Which payloads a job's input names; most jobs have no row",
    sqlite_with_rowid=False,
)

job_labels = Table(
    "job_labels",
    metadata,
    Column("tenant_id", Integer, primary_key=True),
    Column("label", Text, primary_key=True),
    Column("job_id", BigInteger, primary_key=True),
    sqlite_with_rowid=False,
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant_id", Integer, primary_key=True),
    Column("bulk_id", BigInteger, primary_key=True, comment="0 outside bulks"),
    Column("key", Text, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("first_id", BigInteger, nullable=False, comment="The first job, or the bulk"),
    Column("count", Integer, nullable=False, comment="Jobs, ID_STRIDE apart; 0: first_id is a bulk"),
    Column("created_at", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
# Keys live as long as their jobs: the retention looks them up by the first of these.
Index("idempotency_first", idempotency.c.first_id)

bulks = Table(
    "bulks",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=False),
    Column("tenant_id", Integer, nullable=False),
    Column("queue_id", Integer, nullable=False),
    Column("defaults", LargeBinary, nullable=False, comment="JSON: what its jobs share, as submitted"),
    Column("chunk_size", Integer, nullable=False),
    Column("jobs", BigInteger, nullable=False, server_default=text("0"), comment="Accepted so far"),
    Column("sealed_at", BigInteger),
    Column("paused", Boolean, nullable=False, server_default=text("false")),
    Column("cancel_requested", Boolean, nullable=False, server_default=text("false")),
    Column(
        "sweep",
        SmallInteger,
        nullable=False,
        server_default=text("0"),
        comment="1 while rows are to be held, freed or cancelled; 2 paused and all held",
    ),
    Column("swept", BigInteger, nullable=False, server_default=text("0"), comment="Where the sweep goes on: an index"),
    Column(
        "retired",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="Jobs deleted; a finished bulk goes with its last",
    ),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", Text),
    Column("webhook", Text, comment="The URL that hears of its end"),
    Column("finished_at", BigInteger, comment="When the leader found it sealed and all its jobs ended"),
)
Index("bulks_tenant", bulks.c.tenant_id, bulks.c.id)
# Few rows at any time: what a claim looks at to know which bulks are held.
_SWEEP = text("sweep > 0")
Index("bulks_sweep", bulks.c.sweep, bulks.c.id, sqlite_where=_SWEEP, postgresql_where=_SWEEP)
_UNFINISHED = text("finished_at IS NULL")
Index("bulks_unfinished", bulks.c.id, sqlite_where=_UNFINISHED, postgresql_where=_UNFINISHED)

bulk_chunks = Table(
    "bulk_chunks",
    metadata,
    Column("bulk_id", BigInteger, primary_key=True),
    Column("first_index", BigInteger, primary_key=True),
    Column("first_id", BigInteger, nullable=False),
    Column("count", Integer, nullable=False, comment="Jobs, ID_STRIDE apart"),
    sqlite_with_rowid=False,
)

flushes = Table(
    "flushes",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("bulk_id", BigInteger, nullable=False),
    Column("seq", BigInteger, comment="Commit order; NULL until the leader has numbered it (Postgres)"),
    Column(
        "job_ids", LargeBinary, nullable=False, comment="Big-endian 64-bit ids that became terminal in one transaction"
    ),
)
Index("flushes_seq", flushes.c.bulk_id, flushes.c.seq)
_UNNUMBERED = text("seq IS NULL")
Index("flushes_unnumbered", flushes.c.id, sqlite_where=_UNNUMBERED, postgresql_where=_UNNUMBERED)


class Ledger(NamedTuple):
    """A table of sums and, for Postgres, the table of deltas that the leader folds into it."""

    totals: Table
    deltas: Table
    keys: tuple[str, ...]
    sums: tuple[str, ...]


def _ledger(
    name: str, keys: list[tuple[str, type[BigInteger] | type[Integer] | type[SmallInteger]]], sums: list[str]
) -> Ledger:
    totals = Table(
        name,
        metadata,
        *(Column(key, kind, primary_key=True, autoincrement=False) for key, kind in keys),
        *(Column(column, BigInteger, nullable=False) for column in sums),
        sqlite_with_rowid=False,
    )
    deltas = Table(
        f"{name}_deltas",
        metadata,
        Column("delta_id", _Id, primary_key=True, autoincrement=True),
        *(Column(key, kind, nullable=False) for key, kind in keys),
        *(Column(column, BigInteger, nullable=False) for column in sums),
    )
    return Ledger(totals, deltas, tuple(key for key, _ in keys), tuple(sums))


BACKLOG = _ledger(
    "backlog",
    [
        ("queue_id", Integer),
        ("tenant_id", Integer),
        ("priority", SmallInteger),
        ("state", SmallInteger),
        ("bucket", BigInteger),
    ],
    ["jobs", "cost"],
)
"""Jobs and their estimated cost by queue, tenant, priority, state and deadline bucket; terminal states in bucket 0.
What was deleted from a terminal state s goes on being counted in -1 - s, so that both together never fall."""

BULK_COUNTS = _ledger("bulk_counts", [("bulk_id", BigInteger), ("state", SmallInteger)], ["jobs", "cost"])
"""Jobs of a bulk by state, retired ones included; `cost` is estimated, and exact for succeeded jobs."""

USAGE = _ledger(
    "usage",
    [("tenant_id", Integer), ("queue_id", Integer), ("hour", Integer)],
    ["jobs", "cost", "device_us", "input_bytes", "result_bytes", "retired_bytes"],
)
"""What was used, by whole hours since the epoch: succeeded jobs, their exact cost, device time; and bytes of inputs as
submitted, of results as written, of both as retired. A payload's bytes come with the first job that refers to it, and
go with the last."""

consumers = Table(
    "consumers",
    metadata,
    Column(
        "id",
        _Id,
        primary_key=True,
        autoincrement=False,
        comment="Random, new at every process start: the owner of claims",
    ),
    Column("pool", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("device", Text, nullable=False),
    Column("capacity", Text, nullable=False, comment="on_demand or spot"),
    Column("state", Text, nullable=False, comment="starting, ready, draining, gone (left in order), dead (reaped)"),
    Column("queue_ids", Text, nullable=False, comment="JSON array, in the order served"),
    Column("stats", Text, nullable=False, comment="JSON: what it tells status and top"),
    Column("started_at", BigInteger, nullable=False),
    Column("ready_at", BigInteger),
    Column("lease_until", BigInteger, nullable=False),
    Column("executing", Text, comment="JSON array: jobs that it died of, or the suspect that it runs; NULL: unknown"),
    Column("cause", Text, comment="How its process ended, for people"),
    Column("zone", Text, nullable=False, server_default=text("''"), comment="Of its cloud; empty: not known"),
    Column("preempted_at", BigInteger, comment="When it told that its machine is taken back; it drains from then on"),
)

leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", BigInteger, nullable=False),
    Column("until", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False, comment="Counts changes of holder"),
)

decisions = Table(
    "decisions",
    metadata,
    Column("pool", Text, primary_key=True),
    Column("replicas", Integer, nullable=False, comment="Wanted"),
    Column("live", Integer, nullable=False, comment="Starting or ready"),
    Column("rule", Text, nullable=False, server_default=text("''"), comment="What decided, as one word"),
    Column("reason", Text, nullable=False),
    Column("backlog_jobs", BigInteger, nullable=False),
    Column("backlog_seconds", Float, comment="Of one consumer's time; NULL while a speed is unknown"),
    Column("binding_deadline", BigInteger, comment="The deadline that asked for the most replicas"),
    Column(
        "unmeetable_jobs",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="Due before any replica that is not there yet could help",
    ),
    Column("zones", Text, nullable=False, server_default=text("'{}'"), comment="JSON: of a spot pool, zone → replicas"),
    Column("decided_at", BigInteger, nullable=False),
    comment="The last one of each pool",
)

pool_overrides = Table(
    "pool_overrides",
    metadata,
    Column("pool", Text, primary_key=True),
    Column("pinned", Integer, comment="Replicas that someone fixed by hand"),
    Column("paused", Boolean, nullable=False, server_default=text("false"), comment="None are wanted"),
)

spend = Table(
    "spend",
    metadata,
    Column("pool", Text, primary_key=True),
    Column("hour", Integer, primary_key=True, autoincrement=False, comment="Whole hours since the epoch"),
    Column("replica_seconds", Float, nullable=False),
    Column("dollars", Float, nullable=False, comment="At the prices of the time; 0 without one"),
)

learned = Table(
    "learned",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False, comment="JSON"),
    comment="What scalers measured, for the next one: cold starts, speeds, arrivals",
)

payloads = Table(
    "payloads",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=False),
    Column("tenant_id", Integer, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("location", Text, nullable=False, comment="Path within the object store"),
    Column("created_at", BigInteger, nullable=False),
    Column("jobs", BigInteger, nullable=False, server_default=text("0"), comment="Existing jobs that refer to it"),
)
_UNUSED = text("jobs = 0")
Index("payloads_unused", payloads.c.created_at, sqlite_where=_UNUSED, postgresql_where=_UNUSED)

payload_leftovers = Table(
    "payload_leftovers",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=False, comment="Of the payload that is no more, or not yet"),
    Column("location", Text, nullable=False),
    Column("due_at", BigInteger, nullable=False, comment="When its bytes are to be deleted, or that is tried again"),
    Column("expected", Boolean, nullable=False, comment="An upload is under way that may still become a payload"),
    comment="Bytes in the object store that no payload names",
)
Index("payload_leftovers_due", payload_leftovers.c.due_at)

tombstones = Table(
    "tombstones",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=False, comment="Of a retired job or bulk"),
    Column("tenant_id", Integer, nullable=False),
    Column("retired_at", BigInteger, nullable=False),
)
Index("tombstones_retired", tombstones.c.retired_at)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=False),
    Column("tenant_id", Integer, nullable=False),
    Column("url", Text, comment="NULL: the tenant's one for the URLs that its jobs and bulks name"),
    Column("events", Integer, nullable=False, comment="Bits by `batchyard.webhooks.Event`"),
    Column("description", Text, nullable=False),
    Column("secret", Text, nullable=False),
    Column("former_secret", Text, comment="Signs too, until `former_until`"),
    Column("former_until", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("disabled_at", BigInteger),
    Column("disabled_because", Text),
    comment="Endpoints. Few: whoever ends a job looks whether its tenant has one",
)
Index("webhooks_tenant", webhooks.c.tenant_id)
_UNNAMED = text("url IS NULL")
Index("webhooks_named_by_jobs", webhooks.c.tenant_id, unique=True, sqlite_where=_UNNAMED, postgresql_where=_UNNAMED)

job_progress = Table(
    "job_progress",
    metadata,
    Column("job_id", BigInteger, primary_key=True, autoincrement=False),
    Column("attempt", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False, comment="JSON"),
    comment="What a running job has come to so far",
    sqlite_with_rowid=False,
)

computations = Table(
    "computations",
    metadata,
    Column("key", LargeBinary, primary_key=True, comment="SHA-256 of what is computed, by which version, for whom"),
    Column("job_id", BigInteger, nullable=False, comment="That computes it, or has; its own row says how that stands"),
    Column("keep_ms", BigInteger, nullable=False, comment="How long its result may serve others"),
    Column("failures", Integer, nullable=False, comment="Of jobs that went before it, in a row"),
    sqlite_with_rowid=False,
)

followers = Table(
    "followers",
    metadata,
    Column("job_id", BigInteger, primary_key=True, autoincrement=False),
    Column("attempt", Integer, nullable=False, comment="That gave way; counts while the job waits at it"),
    Column("computing_id", BigInteger, nullable=False, comment="The job that goes first"),
    comment="Waiting jobs that let another go first which computes the same",
    sqlite_with_rowid=False,
)
Index("followers_computing", followers.c.computing_id)

job_webhooks = Table(
    "job_webhooks",
    metadata,
    Column("job_id", BigInteger, primary_key=True, autoincrement=False),
    Column("url", Text, nullable=False),
    comment="The URL that hears of a job's end; most jobs have no row",
    sqlite_with_rowid=False,
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("tenant_id", Integer, nullable=False),
    Column("webhook_id", BigInteger, nullable=False),
    Column("subject_id", BigInteger, nullable=False, comment="The job or bulk that ended"),
    Column("event", SmallInteger, nullable=False),
    Column("url", Text, comment="Where the job or bulk named it; NULL: the endpoint's own"),
    Column("state", SmallInteger, nullable=False, server_default=text("0"), comment="0 pending, 1 delivered, 2 dead"),
    Column("attempts", Integer, nullable=False, server_default=text("0"), comment="Fences what is written of one"),
    Column("created_at", BigInteger, nullable=False, comment="When the job or bulk ended"),
    Column("due_at", BigInteger, nullable=False, comment="Of the next attempt; during one, when it counts as lost"),
    Column("ended_at", BigInteger),
    Column("status", Integer, comment="Of the last answer"),
    Column("error", Text, comment="Why the last attempt failed"),
    UniqueConstraint("subject_id", "webhook_id"),
    comment="The outbox: written in the transaction that ends the job",
)
_PENDING = text("state = 0")
Index(
    "webhook_deliveries_due",
    webhook_deliveries.c.webhook_id,
    webhook_deliveries.c.due_at,
    sqlite_where=_PENDING,
    postgresql_where=_PENDING,
)
Index("webhook_deliveries_tenant", webhook_deliveries.c.tenant_id, webhook_deliveries.c.id)
