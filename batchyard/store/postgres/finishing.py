"""Outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from operator import attrgetter
from typing import Any

from batchyard.jobs import Outcome, State
from batchyard.store.deltas import HOUR_MS
from batchyard.store.postgres.arrays import NO_INT8S, byteas, int4s, int8s
from batchyard.store.postgres.session import ConnectionLost, Session, int8
from batchyard.store.postgres.statement import BUCKET, NOW, Statement
from batchyard.store.views import ERROR, dump_error
from batchyard.webhooks import FIRST_TERMINAL

_CLOCK = f"""
WITH clock AS MATERIALIZED (SELECT {NOW} AS now"""

# Without a time nothing is moved.
_UNLESS_HEARD = " WHERE NOT EXISTS (SELECT FROM webhooks WHERE disabled_at IS NULL)"

_GIVEN = f"""),
given AS MATERIALIZED (
    SELECT * FROM unnest(
        %(ids)s, %(attempts)s, %(states)s, %(formats)s, %(bodies)s, %(costs)s, %(device)s, %(retry)s
    ) AS g(id, attempt, state, format, body, cost, device_us, retry_ms)
),
moved AS (
    UPDATE jobs j SET
        state = CASE WHEN j.cancel_requested THEN 5 ELSE g.state END,
        failures = j.failures + CASE WHEN g.state IN (2, 4) AND NOT j.cancel_requested THEN 1 ELSE 0 END,
        not_before = CASE WHEN g.state = 2 AND NOT j.cancel_requested THEN c.now + coalesce(g.retry_ms, 0) END,
        finished_at = CASE WHEN g.state <> 2 OR j.cancel_requested THEN c.now END
    FROM given g, clock c
    WHERE j.id = g.id AND j.state + 0 = 1 AND j.owner + 0 = %(owner)s AND j.attempt + 0 = g.attempt
    RETURNING j.id, j.state, j.queue_id, tenant_id, priority, cost_estimate, deadline, bulk_id, j.attempt, g.format,
        g.body, g.cost, g.device_us
),
counted AS MATERIALIZED (
    SELECT queue_id, tenant_id, priority, {BUCKET} AS bucket, bulk_id, state, count(*) AS jobs,
        sum(cost_estimate) AS estimate, sum(cost) AS cost, sum(device_us) AS device_us, sum(length(body)) AS bytes
    FROM moved GROUP BY 1, 2, 3, 4, 5, 6
),
sums AS (
    INSERT INTO backlog_deltas (queue_id, tenant_id, priority, state, bucket, jobs, cost)
    SELECT queue_id, tenant_id, priority, v.state, v.bucket, sum(v.jobs), sum(v.cost)
    FROM counted m CROSS JOIN LATERAL (VALUES
        (1, m.bucket, -m.jobs, -m.estimate),
        (m.state, CASE WHEN m.state < 3 THEN m.bucket ELSE 0 END, m.jobs, m.estimate)
    ) AS v(state, bucket, jobs, cost)
    GROUP BY queue_id, tenant_id, priority, v.state, v.bucket
),
used AS (
    INSERT INTO usage_deltas (
        tenant_id, queue_id, hour, jobs, cost, device_us, input_bytes, result_bytes, retired_bytes
    )
    SELECT tenant_id, queue_id, now / {HOUR_MS}, coalesce(sum(jobs) FILTER (WHERE state = 3), 0),
        coalesce(sum(cost) FILTER (WHERE state = 3), 0), sum(device_us), 0,
        coalesce(sum(bytes) FILTER (WHERE state IN (3, 4)), 0), 0
    FROM counted, clock WHERE state IN (3, 4) OR device_us > 0 GROUP BY tenant_id, queue_id, now
),"""

_RESULTS = """
results AS (
    INSERT INTO job_results (job_id, format, cost, device_us, attempt, completed_by, body)
    SELECT id, format, cost, device_us, attempt, %(owner)s, body FROM moved WHERE state IN (3, 4)
)"""

# Where an earlier attempt may have left its error.
_RESULTS_AGAIN = """
results AS (
    INSERT INTO job_results AS r (job_id, format, cost, device_us, attempt, completed_by, body)
    SELECT id, format, cost, device_us, attempt, %(owner)s, body FROM moved WHERE state IN (2, 3, 4)
    ON CONFLICT (job_id) DO UPDATE SET format = excluded.format, cost = excluded.cost,
        device_us = r.device_us + excluded.device_us, attempt = excluded.attempt,
        completed_by = excluded.completed_by, body = excluded.body
)"""

_FLUSHES = """,
bulk_sums AS (
    INSERT INTO bulk_counts_deltas (bulk_id, state, jobs, cost)
    SELECT bulk_id, v.state, sum(v.jobs), sum(v.cost)
    FROM counted m CROSS JOIN LATERAL (VALUES
        (1, -m.jobs, -m.estimate), (m.state, m.jobs, CASE WHEN m.state = 3 THEN m.cost ELSE m.estimate END)
    ) AS v(state, jobs, cost)
    WHERE bulk_id IS NOT NULL GROUP BY bulk_id, v.state
),
flushed AS (
    INSERT INTO flushes (bulk_id, job_ids)
    SELECT bulk_id, string_agg(int8send(id), '') FROM moved WHERE bulk_id IS NOT NULL AND state >= 3 GROUP BY bulk_id
)"""

# A job's own URL is looked up by its key, whatever the planner knows, and only where its tenant's jobs name any.
_ANNOUNCED = f""",
announced AS (
    INSERT INTO webhook_deliveries (tenant_id, webhook_id, subject_id, event, url, created_at, due_at)
    SELECT tenant_id, webhook_id, subject_id, event, url, now, now
    FROM (
        SELECT w.tenant_id, w.id AS webhook_id, m.id AS subject_id, m.state - {FIRST_TERMINAL} AS event, c.now,
            w.url IS NULL AS is_named,
            CASE WHEN w.url IS NULL THEN (SELECT u.url FROM job_webhooks u WHERE u.job_id = m.id) END AS url
        FROM webhooks w CROSS JOIN clock c JOIN moved m ON m.tenant_id = w.tenant_id
        WHERE w.disabled_at IS NULL AND m.state >= {FIRST_TERMINAL}
            AND (w.url IS NULL OR w.events >> (m.state - {FIRST_TERMINAL}) & 1 = 1)
    ) t
    WHERE url IS NOT NULL OR NOT is_named
    ON CONFLICT DO NOTHING
)"""

_WRITTEN = """
SELECT CASE WHEN count(*) < cardinality(%(ids)s) THEN ARRAY(SELECT id FROM moved) END FROM moved"""


@cache
def finish(*, bulks: bool, retries: bool, webhooks: bool, shares: bool) -> Statement:
    """Writes outcomes; answers with the ids written, or NULL where that is all of them.

    Without `webhooks` it has no part for these, whose start alone would cost some jobs' worth, and writes nothing where
    there are any. `shares`: some computed for others, or were served with what others had computed.
    """
    return Statement(
        "".join(
            (
                _CLOCK,
                "" if webhooks else _UNLESS_HEARD,
                _GIVEN,
                _RESULTS_AGAIN if retries else _RESULTS,
                _FLUSHES if bulks else "",
                _ANNOUNCED if webhooks else "",
                _WRITTEN,
            )
        ),
        then=_AFTER if shares else None,
    )


FINISHED = Statement("""
SELECT j.id FROM unnest(%(ids)s, %(attempts)s, %(states)s) AS g(id, attempt, state) JOIN jobs j ON j.id = g.id
WHERE j.state + 0 IN (g.state, 5) AND j.owner + 0 = %(owner)s AND j.attempt + 0 = g.attempt""")
"""Of outcomes that matched nothing, those that this owner wrote before, when the answer was lost."""


_AFTER = Statement(f"""
WITH told AS (
    UPDATE job_results r SET computed_by = w.computed_by
    FROM unnest(%(served)s, %(served_by)s) AS w(id, computed_by) JOIN jobs j ON j.id = w.id
    WHERE r.job_id = w.id AND j.state + 0 = 3 AND j.owner + 0 = %(owner)s AND r.attempt = j.attempt
),
over AS MATERIALIZED (SELECT j.id FROM unnest(%(followed)s) AS w(id) JOIN jobs j ON j.id = w.id WHERE j.state + 0 <> 1),
freed AS (DELETE FROM followers f USING over o WHERE f.computing_id = o.id RETURNING f.job_id, f.attempt),
due AS MATERIALIZED (
    SELECT j.id FROM freed f JOIN jobs j ON j.id = f.job_id
    WHERE j.state + 0 = 2 AND j.attempt + 0 = f.attempt FOR UPDATE OF j SKIP LOCKED
)
UPDATE jobs j SET not_before = {NOW} FROM due d WHERE j.id = d.id""")
"""Names who computed what others were served with, and makes those due that let a job go first which runs no more. One
that somebody else holds now is so with the lease that it waits for."""

_BY_ID = attrgetter("job.id")


class Finishing(Session):
    """Consumers hand in what became of their jobs."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        # Only ever becomes true, so any thread may set it; where it is so in vain, the statement is a little slower.
        self._has_webhooks = False

    def finish(self, outcomes: Sequence[Outcome], *, owner: int) -> list[int]:
        """See `JobStore.finish`. Sent again, once, where the connection is lost: the fence makes that harmless."""
        if not outcomes:
            return []
        values = _columns(sorted(outcomes, key=_BY_ID))
        values["owner"] = int8(owner)
        values["followed"] = int8s([outcome.job.id for outcome in outcomes if outcome.job.is_followed])
        served = {one.job.id: one.computed_by for one in outcomes if one.computed_by is not None}
        values["served"], values["served_by"] = int8s(served), int8s(served.values())
        written = self._finish(outcomes, values, webhooks=self._has_webhooks)
        if written == [] and not self._has_webhooks:
            self._has_webhooks = True
            written = self._finish(outcomes, values, webhooks=True)
        if written is None:
            return [outcome.job.id for outcome in outcomes]
        known = {*written, *(job_id for (job_id,) in self._run(FINISHED, **values))}
        return list(dict.fromkeys(outcome.job.id for outcome in outcomes if outcome.job.id in known))

    def _finish(self, outcomes: Sequence[Outcome], values: dict[str, Any], *, webhooks: bool) -> list[int] | None:
        statement = finish(
            bulks=any(outcome.job.bulk_id is not None for outcome in outcomes),
            retries=any(outcome.state is State.WAITING or outcome.job.failures for outcome in outcomes),
            webhooks=webhooks,
            shares=any(outcome.job.is_followed or outcome.computed_by is not None for outcome in outcomes),
        )
        try:
            ((written,),) = self._run(statement, **values)
        except ConnectionLost:
            ((written,),) = self._run(statement, **values)
        ids: list[int] | None = written
        return ids


def _columns(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    jobs = [outcome.job for outcome in outcomes]
    waits = any(outcome.retry_in_ms for outcome in outcomes)
    return {
        "ids": int8s([job.id for job in jobs]),
        "attempts": int4s([job.attempt for job in jobs]),
        "states": int4s([outcome.state for outcome in outcomes]),
        "formats": int4s([outcome.format if outcome.state is State.SUCCEEDED else ERROR for outcome in outcomes]),
        "bodies": byteas([_body(outcome) for outcome in outcomes]),
        "costs": int8s([outcome.cost for outcome in outcomes]),
        "device": int8s([outcome.device_us for outcome in outcomes]),
        "retry": int8s([outcome.retry_in_ms for outcome in outcomes]) if waits else NO_INT8S,
    }


def _body(outcome: Outcome) -> bytes:
    """The result, or the error as a result."""
    if outcome.state is State.SUCCEEDED:
        return outcome.body or b""
    return b"" if outcome.state is State.CANCELLED else dump_error(outcome.error)
