"""The backlog as work by deadline."""

import math

from batchyard.jobs import BUCKET_MS, Lane, State
from batchyard_scaler.policy.records import Due
from batchyard_scaler.signals.demand import demand_of, waiting_by_queue
from tests.unit.scaler.queues import row, version

NOW_MS = 1_700_000_080_000


def test_what_counts_as_work() -> None:
    rows = [
        row(1, cost=10),
        row(2, cost=20, state=State.RUNNING),
        row(4, state=State.WAITING),
        row(8, state=State.SUCCEEDED),
        row(16, priority=-6),
        row(32, queue_id=2),
        row(64, queue_id=3, priority=9),
    ]
    waiting = waiting_by_queue([version(paused=frozenset({Lane.TOLERANT}))], rows)

    assert {number: found.buckets for number, found in waiting.items()} == {1: {0: [3, 30]}, 3: {0: [64, 0]}}
    assert (waiting[1].running, waiting[1].is_interactive, waiting[3].is_interactive) == (2, False, True)


def test_work_is_due_by_its_deadline_bucket_in_seconds_of_one_consumer() -> None:
    minute = NOW_MS // BUCKET_MS
    rows = [row(1, cost=7, bucket=minute + 2), row(2, cost=3), row(1, cost=1, bucket=minute)]
    waiting = waiting_by_queue([version()], rows)

    demand = demand_of(version(), Lane.FIRM, waiting[1], seconds_per_unit=2.0, now_ms=NOW_MS)

    assert (demand.queue, demand.is_tolerant, demand.is_prior) == ("m@1 firm", False, False)
    assert list(demand.due) == [
        Due(in_seconds=-40.0, jobs=1, work_seconds=2.0),
        Due(in_seconds=80.0, jobs=1, work_seconds=14.0),
        Due(in_seconds=math.inf, jobs=2, work_seconds=6.0),
    ]


def test_a_model_that_nobody_has_measured_counts_by_the_stated_prior() -> None:
    waiting = waiting_by_queue([version()], [row(5, cost=1_000)])
    demand = demand_of(version(), Lane.TOLERANT, waiting[1], seconds_per_unit=None, now_ms=NOW_MS)
    assert demand.is_prior
    assert [due.work_seconds for due in demand.due] == [5.0]
