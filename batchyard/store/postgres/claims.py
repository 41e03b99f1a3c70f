"""Claims."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from batchyard.errors import Unavailable
from batchyard.jobs import ClaimedJob
from batchyard.store.postgres.arrays import Int4Array, int4_runs, int4s, int8s
from batchyard.store.postgres.session import ConnectionLost, Session, int8
from batchyard.store.postgres.statement import BUCKET, NOW, Statement

_CLAIMED = """
    m.id, m.attempt, m.queue_id, m.tenant_id, m.priority, m.cost_estimate, m.deadline, m.bulk_id, m.failures,
    m.max_failures, m.suspect, m.created_at, i.body, i.params, m.started_at"""

CLAIM = Statement(f"""
WITH clock AS MATERIALIZED (
    SELECT greatest({NOW}, %(after)s + 1) AS now FROM consumers
    WHERE id = %(owner)s AND state NOT IN ('gone', 'dead') AND lease_until > {NOW} FOR SHARE
),
wanted AS MATERIALIZED (SELECT * FROM unnest(%(ids)s, %(queues)s) AS w(id, queue_id)),
picked AS MATERIALIZED (
    SELECT c.now, j.place FROM clock c CROSS JOIN wanted w CROSS JOIN LATERAL (
        SELECT ctid AS place FROM jobs
        WHERE id = w.id AND state + 0 = 0 AND queue_id + 0 = w.queue_id AND priority + 0 >= 0
            AND (deadline IS NULL OR deadline > c.now)
            AND queue_id = ANY(ARRAY(SELECT id FROM queues WHERE NOT paused))
            AND (bulk_id IS NULL OR bulk_id <> ALL(ARRAY(
                SELECT id FROM bulks WHERE sweep > 0 AND (paused OR cancel_requested)
            )))
        FOR UPDATE SKIP LOCKED
    ) j
),
moved AS (
    UPDATE jobs j SET state = 1, attempt = attempt + 1, owner = %(owner)s, started_at = p.now
    FROM picked p WHERE j.ctid = p.place
    RETURNING j.id, attempt, queue_id, tenant_id, priority, cost_estimate, deadline, bulk_id, failures, max_failures,
        suspect, created_at, started_at
),
counted AS MATERIALIZED (
    SELECT queue_id, tenant_id, priority, {BUCKET} AS bucket, bulk_id, count(*) AS jobs, sum(cost_estimate) AS cost
    FROM moved GROUP BY 1, 2, 3, 4, 5
),
sums AS (
    INSERT INTO backlog_deltas (queue_id, tenant_id, priority, state, bucket, jobs, cost)
    SELECT queue_id, tenant_id, priority, v.state, bucket, v.sign * sum(jobs), v.sign * sum(cost)
    FROM counted, (VALUES (0, -1), (1, 1)) AS v(state, sign)
    GROUP BY queue_id, tenant_id, priority, v.state, bucket, v.sign
),
bulk_sums AS (
    INSERT INTO bulk_counts_deltas (bulk_id, state, jobs, cost)
    SELECT bulk_id, v.state, v.sign * sum(jobs), v.sign * sum(cost)
    FROM counted, (VALUES (0, -1), (1, 1)) AS v(state, sign)
    WHERE bulk_id IS NOT NULL GROUP BY bulk_id, v.state, v.sign
)
SELECT {_CLAIMED} FROM moved m JOIN job_inputs i ON i.job_id = m.id""")
"""Takes jobs. `started_at` rises from claim to claim of one owner, so that `RECLAIM` can tell the last claim's."""

SETTLE = Statement("SELECT id FROM consumers WHERE id = %(owner)s FOR UPDATE")
"""Waits for claims of this owner that are still under way."""

RECLAIM = Statement(f"""
SELECT {_CLAIMED}
FROM unnest(%(ids)s) AS w(id) JOIN jobs m ON m.id = w.id JOIN job_inputs i ON i.job_id = m.id
WHERE m.state + 0 = 1 AND m.owner + 0 = %(owner)s AND m.started_at > %(after)s""")
"""What a claim took whose answer was lost."""


class _Unclear(NamedTuple):
    """A claim whose answer was lost: what it asked for, and after which claim."""

    ids: Sequence[int]
    after: int


class Claiming(Session):
    """Consumers take their jobs."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        # One claim at a time, so that a lost answer can be told from the claims before it.
        self._claims = threading.Lock()
        self._last_claim: dict[int, int] = {}
        self._unclear: dict[int, _Unclear] = {}

    def claim(self, tickets: Sequence[tuple[int, Sequence[int]]], *, owner: int) -> list[ClaimedJob]:
        """See `JobStore.claim`.

        Where the connection is lost with a claim under way, what it took is returned as soon as the database answers
        again: by this call, else by the next one of the same owner, beside what that one asks for.
        """
        ids, queues = _wanted(tickets)
        with self._claims:
            found = self._resolve(owner) if owner in self._unclear else []
            try:
                return found + (self._claim_surely(ids, queues, owner) if ids else [])
            except Unavailable:
                if not found:
                    raise
                return found

    def _claim_surely(self, ids: Sequence[int], queues: Int4Array, owner: int) -> list[ClaimedJob]:
        """Claim; where the answer is lost, find out, and claim again if nothing was taken."""
        unclear = _Unclear(ids, self._last_claim.get(owner, 0))
        try:
            return self._claim(ids, queues, owner)
        except ConnectionLost:
            self._unclear[owner] = unclear
        taken = self._resolve(owner)
        if taken:
            return taken
        try:
            return self._claim(ids, queues, owner)
        except ConnectionLost:
            self._unclear[owner] = unclear
            raise

    def _claim(self, ids: Sequence[int], queues: Int4Array, owner: int) -> list[ClaimedJob]:
        after = self._last_claim.get(owner, 0)
        return self._keep(owner, self._run(CLAIM, ids=int8s(ids), queues=queues, owner=int8(owner), after=int8(after)))

    def _resolve(self, owner: int) -> list[ClaimedJob]:
        """What the claim took whose answer was lost."""
        unclear = self._unclear[owner]
        self._run(SETTLE, owner=int8(owner))
        after = int8(unclear.after)
        jobs = self._keep(owner, self._run(RECLAIM, ids=int8s(unclear.ids), owner=int8(owner), after=after))
        del self._unclear[owner]
        return jobs

    def _keep(self, owner: int, rows: list[tuple[Any, ...]]) -> list[ClaimedJob]:
        if rows:
            self._last_claim[owner] = rows[0][-1]
        return [ClaimedJob(*row[:-1]) for row in rows]


def _wanted(tickets: Sequence[tuple[int, Sequence[int]]]) -> tuple[list[int], Int4Array]:
    """The ids of all tickets, ascending, and their queues. Numbers that no row can have are left out."""
    queue_ids = {queue_id for queue_id, _ in tickets if 0 <= queue_id < 1 << 31}
    if len(queue_ids) == 1 == len({queue_id for queue_id, _ in tickets}):
        ids = _possible(sorted({job_id for _, ids in tickets for job_id in ids}))
        return ids, int4_runs([(queue_ids.pop(), len(ids))])
    pairs = {(job_id, queue_id) for queue_id, ids in tickets for job_id in ids if queue_id in queue_ids}
    possible = [(job_id, queue_id) for job_id, queue_id in sorted(pairs) if 0 <= job_id < 1 << 63]
    return [job_id for job_id, _ in possible], int4s([queue_id for _, queue_id in possible])


def _possible(ids: list[int]) -> list[int]:
    if ids and (ids[0] < 0 or ids[-1] >= 1 << 63):
        return [job_id for job_id in ids if 0 <= job_id < 1 << 63]
    return ids
