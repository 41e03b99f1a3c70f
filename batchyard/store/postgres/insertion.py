"""The statement that inserts jobs, put together from the parts that a group of submissions needs."""

from __future__ import annotations

from functools import cache

from batchyard.jobs import ID_STRIDE
from batchyard.store.deltas import HOUR_MS
from batchyard.store.postgres.statement import NOW, Statement

_SUBMISSIONS = f"""
WITH clock AS MATERIALIZED (SELECT {NOW} AS now),
subs AS MATERIALIZED (
    SELECT * FROM unnest(
        %(ordinal)s, %(tenant)s, %(queue)s, %(first)s, %(start)s, %(count)s, %(cost)s, %(bytes)s, %(priority)s,
        %(deadline)s, %(bucket)s, %(start_by)s, %(max_failures)s, %(ticketed)s, %(params)s, %(labels)s,
        %(created_by)s, %(trace)s, %(affinity)s, %(max_cost)s, %(redrive)s, %(bulk)s, %(key)s, %(digest)s
    ) AS s(
        ordinal, tenant_id, queue_id, first_id, start, count, cost, bytes, asked_priority, deadline, bucket, start_by,
        max_failures, ticketed, params, labels, created_by, trace_context, affinity_key, max_cost, redrive_of,
        bulk_id, key, digest
    )
)"""

# A chunk waits here for the chunk before it, and for a seal: the rows are those after the wait.
_OPEN = """,
open AS MATERIALIZED (
    SELECT id, tenant_id, jobs, paused FROM bulks
    WHERE id = ANY(%(bulks)s) AND sealed_at IS NULL ORDER BY id FOR NO KEY UPDATE
)"""

# Whoever gives payloads up, or lets go of them, is waited for here: the rows are those after the wait, and they stay.
_NAMED = """,
uses AS MATERIALIZED (
    SELECT * FROM unnest(%(use_ordinal)s, %(use_index)s, %(use_payload)s) AS u(ordinal, index, payload_id)
),
named AS MATERIALIZED (
    SELECT id, tenant_id, size, jobs FROM payloads WHERE id = ANY(%(payloads)s) ORDER BY id FOR NO KEY UPDATE
),
lacking AS MATERIALIZED (
    SELECT u.ordinal FROM uses u JOIN subs s ON s.ordinal = u.ordinal
        LEFT JOIN named n ON n.id = u.payload_id AND n.tenant_id = s.tenant_id
    WHERE n.id IS NULL
)"""

# Bulks are locked before payloads, as where jobs are deleted.
_NAMED_AFTER_BULKS = _NAMED.replace("WHERE id = ANY", "WHERE (SELECT count(*) FROM open) >= 0 AND id = ANY")

_ABLE_IN_BULKS = """,
able AS MATERIALIZED (
    SELECT s.*, CASE WHEN o.paused THEN -1 - asked_priority ELSE asked_priority END AS priority, o.jobs AS place
    FROM subs s LEFT JOIN open o ON o.id = s.bulk_id AND o.tenant_id = s.tenant_id
    WHERE (s.bulk_id IS NULL OR o.id IS NOT NULL)"""

_ABLE = """,
able AS MATERIALIZED (
    SELECT s.*, asked_priority AS priority, 0 AS place FROM subs s
    WHERE true"""

_HAVING_PAYLOADS = """
        AND s.ordinal <> ALL(ARRAY(SELECT ordinal FROM lacking))"""

# Sorted, so that two calls with the same keys wait for each other and do not deadlock.
_NEW_KEYS = """,
keyed AS (
    INSERT INTO idempotency (tenant_id, bulk_id, key, digest, first_id, count, created_at)
    SELECT tenant_id, coalesce(bulk_id, 0), key, digest, first_id, count, now FROM able, clock WHERE key IS NOT NULL
    ORDER BY tenant_id, coalesce(bulk_id, 0), key, ordinal
    ON CONFLICT DO NOTHING RETURNING first_id
),
new AS MATERIALIZED (SELECT * FROM able WHERE key IS NULL OR first_id = ANY(ARRAY(SELECT first_id FROM keyed)))"""

_ALL_NEW = """,
new AS MATERIALIZED (SELECT * FROM able)"""

_PLACED_IN_BULKS = """,
placed AS MATERIALIZED (
    SELECT n.*, CASE WHEN bulk_id IS NULL THEN 0
        ELSE place + sum(count) OVER (PARTITION BY bulk_id ORDER BY ordinal) - count END::bigint AS first_index
    FROM new n
),
grown AS (
    UPDATE bulks b SET jobs = b.jobs + g.count
    FROM (SELECT bulk_id, sum(count) AS count FROM placed WHERE bulk_id IS NOT NULL GROUP BY bulk_id) g
    WHERE b.id = g.bulk_id
),
chunks AS (
    INSERT INTO bulk_chunks (bulk_id, first_index, first_id, count)
    SELECT bulk_id, first_index, first_id, count FROM placed WHERE bulk_id IS NOT NULL
),
bulk_sums AS (
    INSERT INTO bulk_counts_deltas (bulk_id, state, jobs, cost)
    SELECT bulk_id, 0, sum(count), sum(cost) FROM placed WHERE bulk_id IS NOT NULL GROUP BY bulk_id
)"""

_PLACED = """,
placed AS MATERIALIZED (SELECT n.*, 0 AS first_index FROM new n)"""

_ROWS = f""",
rows AS (
    INSERT INTO jobs (
        id, tenant_id, queue_id, state, priority, attempt, failures, crashes, preemptions, max_failures,
        cancel_requested, suspect, cost_estimate, created_at, bulk_id, bulk_index, deadline, start_by, ticketed_at
    )
    SELECT p.first_id + (r.n - 1) * {ID_STRIDE}, p.tenant_id, p.queue_id, 0, p.priority, 0, 0, 0, 0, p.max_failures,
        false, false, r.cost, c.now, p.bulk_id, p.first_index + r.n - 1, p.deadline, p.start_by,
        CASE WHEN p.ticketed > 0 THEN c.now END
    FROM placed p CROSS JOIN clock c CROSS JOIN LATERAL unnest(
        (%(job_cost)s)[p.start + 1 : p.start + p.count]
    ) WITH ORDINALITY AS r(cost, n)
),
inputs AS (
    INSERT INTO job_inputs (
        job_id, custom_id, labels, created_by, trace_context, affinity_key, max_cost, input_digest, redrive_of, params,
        body
    )
    SELECT p.first_id + (r.n - 1) * {ID_STRIDE}, r.custom_id, p.labels, p.created_by, p.trace_context, p.affinity_key,
        p.max_cost, r.input_digest, p.redrive_of, p.params, r.body
    FROM placed p CROSS JOIN LATERAL unnest(
        (%(job_body)s)[p.start + 1 : p.start + p.count],
        (%(job_custom_id)s)[p.start + 1 : p.start + p.count],
        (%(job_digest)s)[p.start + 1 : p.start + p.count]
    ) WITH ORDINALITY AS r(body, custom_id, input_digest, n)
),
sums AS (
    INSERT INTO backlog_deltas (queue_id, tenant_id, priority, state, bucket, jobs, cost)
    SELECT queue_id, tenant_id, priority, 0, bucket, sum(count), sum(cost) FROM placed
    GROUP BY queue_id, tenant_id, priority, bucket
),
used AS (
    INSERT INTO usage_deltas (
        tenant_id, queue_id, hour, jobs, cost, device_us, input_bytes, result_bytes, retired_bytes
    )
    SELECT tenant_id, queue_id, now / {HOUR_MS}, 0, 0, 0, sum(bytes), 0, 0 FROM placed, clock
    GROUP BY tenant_id, queue_id, now
)"""

_LABELS = f""",
labelled AS (
    INSERT INTO job_labels (tenant_id, label, job_id)
    SELECT p.tenant_id, l.label, p.first_id + n * {ID_STRIDE}
    FROM placed p CROSS JOIN LATERAL (SELECT DISTINCT jsonb_array_elements_text(p.labels::jsonb) AS label) l
        CROSS JOIN LATERAL generate_series(0, p.count - 1) AS n
    WHERE p.labels IS NOT NULL
    ORDER BY p.tenant_id, l.label, p.first_id + n * {ID_STRIDE}
)"""

# The bytes of a payload are counted with the first job that refers to it.
_REFERENCES = f""",
referring AS (
    INSERT INTO job_payloads (job_id, payload_id)
    SELECT p.first_id + u.index * {ID_STRIDE}, u.payload_id FROM uses u JOIN placed p ON p.ordinal = u.ordinal
    ORDER BY 1, 2
),
referred AS (
    UPDATE payloads y SET jobs = y.jobs + g.jobs
    FROM (
        SELECT u.payload_id, count(*) AS jobs FROM uses u JOIN placed p ON p.ordinal = u.ordinal GROUP BY u.payload_id
    ) g
    WHERE y.id = g.payload_id
),
used_payloads AS (
    INSERT INTO usage_deltas (
        tenant_id, queue_id, hour, jobs, cost, device_us, input_bytes, result_bytes, retired_bytes
    )
    SELECT n.tenant_id, min(p.queue_id), c.now / {HOUR_MS}, 0, 0, 0, n.size, 0, 0
    FROM uses u JOIN placed p ON p.ordinal = u.ordinal JOIN named n ON n.id = u.payload_id CROSS JOIN clock c
    WHERE n.jobs = 0 GROUP BY n.id, n.tenant_id, n.size, c.now
)"""

_WEBHOOKS = f""",
webhooked AS (
    INSERT INTO job_webhooks (job_id, url)
    SELECT p.first_id + n * {ID_STRIDE}, w.url
    FROM unnest(%(hook_ordinal)s, %(hook_url)s) AS w(ordinal, url) JOIN placed p ON p.ordinal = w.ordinal
        CROSS JOIN LATERAL generate_series(0, p.count - 1) AS n
)"""

_TAKEN = """
SELECT now, ARRAY(SELECT ordinal FROM placed) FROM clock"""


@cache
def submit(*, bulks: bool, keys: bool, labels: bool, payloads: bool, webhooks: bool) -> Statement:
    """Inserts the jobs of many submissions; answers with the time and the ordinals of those taken.

    Not taken are those whose bulk is not open, those whose key is known and those that lack a payload. The parts that
    no submission asks for are left out, because starting an empty part costs more than a job.
    """
    return Statement(
        "".join(
            (
                _SUBMISSIONS,
                _OPEN if bulks else "",
                (_NAMED_AFTER_BULKS if bulks else _NAMED) if payloads else "",
                _ABLE_IN_BULKS if bulks else _ABLE,
                _HAVING_PAYLOADS if payloads else "",
                "\n)",
                _NEW_KEYS if keys else _ALL_NEW,
                _PLACED_IN_BULKS if bulks else _PLACED,
                _ROWS,
                _LABELS if labels else "",
                _REFERENCES if payloads else "",
                _WEBHOOKS if webhooks else "",
                _TAKEN,
            )
        )
    )


KNOWN_KEYS = Statement("""
SELECT s.ordinal, i.digest, i.first_id, i.count, i.created_at
FROM unnest(%(ordinal)s, %(tenant)s, %(bulk)s, %(key)s) AS s(ordinal, tenant_id, bulk_id, key)
JOIN idempotency i ON i.tenant_id = s.tenant_id AND i.bulk_id = s.bulk_id AND i.key = s.key""")
"""What the keys of submissions not taken stand for."""

BULKS = Statement("SELECT id, tenant_id, sealed_at IS NOT NULL FROM bulks WHERE id = ANY(%(bulks)s)")
PAYLOADS = Statement("SELECT id, tenant_id FROM payloads WHERE id = ANY(%(payloads)s)")
"""Why submissions were not taken."""

COMMITTED = Statement("SELECT id, created_at FROM jobs WHERE id = ANY(%(first)s)")
"""Which submissions an insert made whose answer was lost."""
