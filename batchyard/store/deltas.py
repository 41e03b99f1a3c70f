"""What one transaction changes in the ledgers, gathered before it is written. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeVar

from batchyard.jobs import State, deadline_bucket

HOUR_MS = 3_600_000
_SUCCEEDED = int(State.SUCCEEDED)

KeyT = TypeVar("KeyT", bound=tuple[int, ...])


def retired(state: State) -> int:
    """What stands for this terminal state in the sums of the backlog once a job is deleted; negative."""
    return -1 - int(state)


class JobRow(NamedTuple):
    """What the ledgers know of one job; in the order of `sql.JOB_ROW`, so that a row of the database makes one."""

    id: int
    tenant_id: int
    queue_id: int
    state: int
    priority: int
    cost_estimate: int
    deadline: int | None
    bulk_id: int | None
    cancel_requested: bool = False


class Deltas:
    """Changes of the ledgers and the flushes of one transaction. Sums of the same key are merged; nothing is shared.

    Keys of `backlog` are (queue, tenant, priority, state, bucket), of `bulk_counts` (bulk, state), of `usage`
    (tenant, queue, hour); values are the sums in the order of the tables. `ended` names the jobs that `move` made
    terminal, `flushed` those of bulks, by bulk.
    """

    __slots__ = ("backlog", "bulk_counts", "ended", "flushed", "usage")

    def __init__(self) -> None:
        self.backlog: defaultdict[tuple[int, int, int, int, int], list[int]] = defaultdict(_pair)
        self.bulk_counts: defaultdict[tuple[int, int], list[int]] = defaultdict(_pair)
        self.usage: defaultdict[tuple[int, int, int], list[int]] = defaultdict(_six)
        self.flushed: defaultdict[int, list[int]] = defaultdict(list)
        self.ended: list[int] = []

    def count(
        self,
        *,
        queue_id: int,
        tenant_id: int,
        priority: int,
        state: int,
        deadline_ms: int | None,
        bulk_id: int | None,
        jobs: int,
        cost: int,
        exact_cost: int | None = None,
    ) -> None:
        """Add `jobs` jobs of `cost` estimated cost in all (both may be negative) to what stands in `state`.

        `exact_cost` is what succeeded jobs add to their bulk in place of the estimate.
        """
        bucket = deadline_bucket(deadline_ms) if state < _SUCCEEDED else 0
        entry = self.backlog[queue_id, tenant_id, priority, state, bucket]
        entry[0] += jobs
        entry[1] += cost
        if bulk_id is not None:
            entry = self.bulk_counts[bulk_id, state]
            entry[0] += jobs
            entry[1] += cost if exact_cost is None else exact_cost

    def move(
        self,
        job: JobRow,
        to: State,
        *,
        priority: int | None = None,
        deadline_ms: int | None = None,
        queue_id: int | None = None,
    ) -> None:
        """One job leaves its state for `to`, perhaps with another priority, deadline or queue; terminal ones are
        flushed."""
        self._count_row(job, jobs=-1)
        moved = job._replace(
            queue_id=job.queue_id if queue_id is None else queue_id,
            state=int(to),
            priority=job.priority if priority is None else priority,
            deadline=job.deadline if deadline_ms is None else deadline_ms,
        )
        self._count_row(moved, jobs=1)
        if to >= State.SUCCEEDED and job.state < _SUCCEEDED:
            self.ended.append(job.id)
            if job.bulk_id is not None:
                self.flushed[job.bulk_id].append(job.id)

    def drop(self, job: JobRow) -> None:
        """One terminal job is deleted: it leaves the backlog for the count of those retired; its bulk goes on counting
        it."""
        deleted = job._replace(bulk_id=None)
        self._count_row(deleted, jobs=-1)
        self._count_row(deleted._replace(state=retired(State(job.state)), deadline=None), jobs=1)

    def _count_row(self, job: JobRow, *, jobs: int) -> None:
        self.count(
            queue_id=job.queue_id,
            tenant_id=job.tenant_id,
            priority=job.priority,
            state=job.state,
            deadline_ms=job.deadline,
            bulk_id=job.bulk_id,
            jobs=jobs,
            cost=jobs * job.cost_estimate,
        )

    def use(
        self,
        *,
        tenant_id: int,
        queue_id: int,
        now_ms: int,
        jobs: int = 0,
        cost: int = 0,
        device_us: int = 0,
        input_bytes: int = 0,
        result_bytes: int = 0,
        retired_bytes: int = 0,
    ) -> None:
        """Add to the usage of a tenant on a queue in the hour of `now_ms`."""
        entry = self.usage[tenant_id, queue_id, now_ms // HOUR_MS]
        for place, value in enumerate((jobs, cost, device_us, input_bytes, result_bytes, retired_bytes)):
            entry[place] += value

    def backlog_rows(self) -> list[tuple[int, ...]]:
        """Rows to add to the backlog, in key order, those that change nothing left out."""
        return list(_rows(self.backlog))

    def bulk_rows(self) -> list[tuple[int, ...]]:
        """Rows to add to the counts of bulks, as `backlog_rows`."""
        return list(_rows(self.bulk_counts))

    def usage_rows(self) -> list[tuple[int, ...]]:
        """Rows to add to the usage, as `backlog_rows`."""
        return list(_rows(self.usage))


def _rows(sums: Mapping[KeyT, list[int]]) -> Iterator[tuple[int, ...]]:
    for key in sorted(sums):
        values = sums[key]
        if any(values):
            yield (*key, *values)


def _pair() -> list[int]:
    return [0, 0]


def _six() -> list[int]:
    return [0] * 6
