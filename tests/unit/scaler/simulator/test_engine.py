"""The replay against cases computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from batchyard_scaler.policy.records import Decision, Fleet
from batchyard_scaler.simulator.engine import Policy, replay
from batchyard_scaler.simulator.queues import START_MARGIN
from batchyard_scaler.simulator.service import World
from tests.unit.scaler.simulator.hand import COLD, pool_of, spot_of, trace_of


def answers(*numbers: int) -> Policy:
    """So many replicas, look by look; the last number from then on. A look is due every 15 s."""
    left = list(numbers)

    def policy(fleet: Fleet) -> list[Decision]:
        wanted = left.pop(0) if len(left) > 1 else left[0]
        return [
            Decision(pool=pool.name, replicas=wanted, rule="test", reason="as the test says") for pool in fleet.pools
        ]

    return policy


def test_one_replica_serves_in_turn_after_its_cold_start() -> None:
    trace = trace_of([(0, 30, 900), (0, 30, 900), (100, 30, 900)], seconds=200)
    done = replay(trace, pools=[pool_of()], policy=answers(1))
    assert done.finished_at.tolist() == [90, 120, 150]
    spent = done.spent["pool"]
    assert (spent.starts, spent.cold_seconds, spent.busy_seconds, spent.idle_seconds) == (1, 60, 90, 50)
    assert spent.replica_seconds == 200


def test_a_faster_replica_takes_less_time() -> None:
    done = replay(trace_of([(0, 30, 900)], seconds=100), pools=[pool_of(speed=2)], policy=answers(1))
    assert done.finished_at.tolist() == [75]


def test_a_draining_replica_finishes_its_job_and_takes_no_other() -> None:
    trace = trace_of([(0, 100, 900), (0, 100, 900)], seconds=300)
    # Ready at 60, told to go at 75 while it runs the first job, and asked for again at 90: ready at 150.
    done = replay(trace, pools=[pool_of()], policy=answers(1, 1, 1, 1, 1, 0, 1))
    assert done.finished_at.tolist() == [160, 250]
    assert done.spent["pool"].starts == 2
    assert done.spent["pool"].replica_seconds == 160 + (300 - 90)


def test_those_not_ready_leave_first_then_the_idle() -> None:
    trace = trace_of([(0, 500, 9000)], seconds=600)
    done = replay(trace, pools=[pool_of()], policy=answers(2, 2, 2, 2, 2, 3, 1))
    spent = done.spent["pool"]
    # The second is idle from 60 to 90; the third lived from 75 to 90.
    assert (spent.starts, spent.idle_seconds) == (3, 30 + (600 - 560))
    assert spent.cold_seconds == 60 + 60 + 15
    assert done.finished_at.tolist() == [560]


def test_a_job_that_must_start_soon_goes_ahead() -> None:
    first_free, work = COLD + 100, 20.0
    due = first_free + START_MARGIN * work + World().urgent_seconds - 1
    trace = trace_of([(0, 100, 9000), (1, 20, 9000), (2, 20, due)], seconds=400)
    done = replay(trace, pools=[pool_of()], policy=answers(1))
    # Its run time is expected to be the mean of its model.
    assert trace.expected_seconds().tolist() == pytest.approx([140 / 3] * 3)
    assert done.finished_at.tolist() == [160, 200, 180]


def test_another_model_is_swapped_in_where_the_one_in_memory_has_no_work() -> None:
    trace = trace_of([(0, 10, 900), (1, 10, 900), (2, 10, 900)], models=[0, 1, 0], seconds=200)
    done = replay(trace, pools=[pool_of(swap_seconds=23)], policy=answers(1))
    assert done.finished_at.tolist() == [70, 113, 80]
    assert done.spent["pool"].swap_seconds == 23


def test_a_job_that_outlasts_the_notice_is_cut_off_and_done_again() -> None:
    trace = trace_of([(0, 100, 900)], seconds=400)
    done = replay(
        trace,
        pools=[pool_of(capacity="spot", zones=["z"])],
        policy=answers(1),
        spot=spot_of((0, 1), (100, -1), (200, 1)),
        world=World(notice_seconds=30),
    )
    spent = done.spent["pool"]
    # Ran from 60 to 130; a node comes back at 200, its replica is ready at 260.
    assert (spent.preemptions, spent.requeued, spent.lost_seconds, spent.starts) == (1, 1, 70, 2)
    assert done.finished_at.tolist() == [360]
    assert spent.replica_seconds == 130 + 200


def test_a_job_that_fits_into_the_notice_is_finished() -> None:
    done = replay(
        trace_of([(0, 50, 900)], seconds=400),
        pools=[pool_of(capacity="spot", zones=["z"])],
        policy=answers(1),
        spot=spot_of((0, 1), (100, -1)),
        world=World(notice_seconds=30),
    )
    assert done.finished_at.tolist() == [110]
    assert (done.spent["pool"].preemptions, done.spent["pool"].requeued) == (1, 0)


def test_the_policy_is_told_of_zones_and_of_work_by_deadline() -> None:
    seen: list[Fleet] = []

    def policy(fleet: Fleet) -> list[Decision]:
        seen.append(fleet)
        return [Decision(pool="pool", replicas=3, rule="test", reason="")]

    replay(
        trace_of([(0, 50, 600), (0, 70, 900), (16, 60, 600)], seconds=120),
        pools=[pool_of(capacity="spot", zones=["z"])],
        policy=policy,
        spot=spot_of((0, 2), (50, -1)),
    )
    at = {round(fleet.now_seconds): fleet for fleet in seen}
    assert [(due.in_seconds, due.jobs, due.work_seconds) for due in at[15].demands[0].due] == [
        (585, 1, 60),
        (885, 1, 60),
    ]
    assert at[30].demands[0].due[0].jobs == 2
    assert [(replica.state, replica.ready_in_seconds) for replica in at[15].pools[0].replicas] == [("starting", 45)] * 2
    zone = at[60].pools[0].zones[0]
    assert (zone.preemptions, zone.preempted_ago_seconds, zone.refused_ago_seconds) == (1, 10, 0)
    assert at[15].pools[0].zones[0].refused_ago_seconds == math.inf


def test_a_spot_trace_begins_anew_with_the_nodes_of_its_beginning() -> None:
    zone = spot_of((0, 3), (10, -2), (20, 4), seconds=30)["z"]
    assert [zone.change(index) for index in range(5)] == [(0, 3), (10, -2), (20, 4), (30, -2), (40, -2)]


def test_nobody_is_asked_while_nothing_is_there_and_a_hold_is_looked_at_when_it_ends() -> None:
    looks: list[float] = []

    def policy(fleet: Fleet) -> list[Decision]:
        now = fleet.now_seconds
        looks.append(now)
        hold = 500 - now
        wanted = int(bool(fleet.demands) and hold <= 0)
        return [
            Decision(pool="pool", replicas=wanted, rule="test", reason="", next_look_seconds=hold if hold > 0 else None)
        ]

    trace = trace_of([(100, 30, 900)], seconds=700)
    done = replay(trace, pools=[pool_of()], policy=policy)
    assert looks[:4] == [0, 105, 500, 510]
    assert done.finished_at.tolist() == [590]


def test_what_is_never_served_is_never_finished() -> None:
    done = replay(trace_of([(0, 30, 900)], seconds=100), pools=[pool_of()], policy=answers(0))
    assert np.isnan(done.finished_at).all()
