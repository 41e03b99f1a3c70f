"""The backlog as work by deadline. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from batchyard.jobs import BUCKET_MS, Lane, State
from batchyard.store.base import BacklogRow, ModelVersion
from batchyard_scaler.policy.records import Demand, Due

PRIOR_SECONDS_PER_JOB = 1.0
"""Of a model whose speed nobody knows yet, at the speed 1."""
INTERACTIVE_PRIORITY = 9
"""The highest: somebody waits for the answer, so that nothing is held back to save a start."""


class Waiting:
    """What one queue holds, by deadline bucket."""

    __slots__ = ("buckets", "is_interactive", "running")

    def __init__(self) -> None:
        self.buckets: dict[int, list[int]] = {}
        """Bucket → jobs, cost."""
        self.running = 0
        self.is_interactive = False

    def add(self, row: BacklogRow) -> None:
        sums = self.buckets.setdefault(row.bucket, [0, 0])
        sums[0] += row.jobs
        sums[1] += row.cost
        if row.state == State.RUNNING:
            self.running += row.jobs
        elif row.priority == INTERACTIVE_PRIORITY:
            self.is_interactive = True


def waiting_by_queue(versions: Iterable[ModelVersion], rows: Iterable[BacklogRow]) -> dict[int, Waiting]:
    """Queue id → its work: what runs, and what is queued, neither held (negative priority) nor paused. A job that
    waits for its next try is no work until it is due, and then it is queued within a moment."""
    paused = {version.queue_ids[lane] for version in versions for lane in version.paused}
    found: dict[int, Waiting] = {}
    for row in rows:
        is_queued = row.state == State.QUEUED and row.priority >= 0 and row.queue_id not in paused
        if row.jobs > 0 and (is_queued or row.state == State.RUNNING):
            found.setdefault(row.queue_id, Waiting()).add(row)
    return found


def demand_of(
    version: ModelVersion,
    lane: Lane,
    waiting: Waiting | None,
    *,
    seconds_per_unit: float | None,
    now_ms: int,
    forecast: Sequence[Due] = (),
) -> Demand:
    """One queue's demand; `seconds_per_unit` is at the speed 1, None where nobody knows it yet."""
    buckets: Mapping[int, list[int]] = {} if waiting is None else waiting.buckets
    due = [
        Due(
            in_seconds=math.inf if bucket == 0 else (bucket * BUCKET_MS - now_ms) / 1000,
            jobs=jobs,
            work_seconds=jobs * PRIOR_SECONDS_PER_JOB if seconds_per_unit is None else cost * seconds_per_unit,
        )
        for bucket, (jobs, cost) in buckets.items()
    ]
    return Demand(
        queue=f"{version.name} {lane.word}",
        model=version.name,
        is_tolerant=lane == Lane.TOLERANT,
        due=sorted(due, key=lambda one: one.in_seconds),
        running_jobs=0 if waiting is None else waiting.running,
        is_interactive=waiting is not None and waiting.is_interactive,
        is_prior=seconds_per_unit is None,
        forecast=forecast,
    )
