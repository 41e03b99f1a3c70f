"""What the database knows at the end of a run, as lines of its history."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from batchyard import results
from batchyard.jobs import State
from batchyard.store.base import BacklogRow, JobStore
from batchyard.store.views import ERROR
from tests.faults.history import Row, Sums

_ROWS = """
SELECT j.id, j.tenant_id, j.state, j.attempt, j.owner, j.failures, j.max_failures, j.crashes, j.cancel_requested,
    j.deadline, j.finished_at, i.body AS input, i.redrive_of, r.format, r.body, r.attempt AS won_attempt, r.completed_by
FROM jobs j JOIN job_inputs i ON i.job_id = j.id LEFT JOIN job_results r ON r.job_id = j.id ORDER BY j.id
"""


def rows(connection: sa.Connection, tenants: Mapping[int, str]) -> Iterator[Row]:
    """Every job as it stands."""
    return (_row(row, tenants) for row in connection.execute(sa.text(_ROWS)))


def _row(row: Any, tenants: Mapping[int, str]) -> Row:
    is_error = row.format == ERROR
    ended = row.format is not None and row.state in {State.SUCCEEDED, State.FAILED}
    return Row(
        id=row.id,
        tenant=tenants[row.tenant_id],
        token=msgspec.json.decode(row.input)["token"],
        state=State(row.state),
        attempt=row.attempt,
        owner=row.owner,
        failures=row.failures,
        max_failures=row.max_failures,
        crashes=row.crashes,
        cancel_requested=bool(row.cancel_requested),
        deadline_ms=row.deadline,
        finished_ms=row.finished_at,
        redrive_of=row.redrive_of,
        value=results.decode(row.format, row.body) if ended and not is_error else None,
        error=msgspec.json.decode(row.body)["code"] if ended and is_error else "",
        won_attempt=row.won_attempt if ended else None,
        won_by=row.completed_by if ended else None,
    )


def sums(store: JobStore, tenants: Mapping[int, str]) -> Iterator[Sums]:
    """The ledgers of each tenant, compared with counting."""
    told, counted = list(map(_lines, (store.backlog(), store.recount())))
    wrong = Counter(key[0] for key in {*told, *counted} if told[key] != counted[key])
    used: Counter[int] = Counter()
    for usage in store.usage():
        used[usage.tenant_id] += usage.jobs
    for tenant_id, name in tenants.items():
        backlog: Counter[str] = Counter()
        for (owner, state, *_), (jobs, _) in told.items():
            if owner == tenant_id and jobs:
                backlog[State(state).word] += jobs
        yield Sums(tenant=name, backlog=dict(backlog), used_jobs=used[tenant_id], wrong_lines=wrong[tenant_id])


def _lines(rows: Sequence[BacklogRow]) -> dict[tuple[int, ...], tuple[int, int]]:
    """Jobs and cost by tenant and state, then by all else that the ledger tells apart; nothing is none."""
    lines: dict[tuple[int, ...], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for row in rows:
        key = (row.tenant_id, int(row.state), row.queue_id, row.priority, row.bucket)
        lines[key] = (row.jobs, row.cost)
    return lines
