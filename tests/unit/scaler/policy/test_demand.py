"""How many replicas work asks for, by the deadline that asks for the most."""

import math

import pytest

from batchyard_scaler.policy.records import Due, Replica
from tests.unit.scaler.policy.fleets import COLD, NO_DEADLINE, decided, demand, due, pool


@pytest.mark.parametrize("work", [900.0, 6_000.0, 6_001.0, 25_000.0])
def test_with_one_deadline_it_is_the_backlog_for_each_instance(work: float) -> None:
    made = decided(pool(), demand(due(COLD + 600, work)))
    assert made.replicas == math.ceil(work / 600)
    assert made.rule == "deadline"
    assert made.binding_deadline_seconds == COLD + 600


def test_the_deadline_that_asks_for_the_most_binds() -> None:
    made = decided(pool(), demand(due(360, 900), due(660, 5_400), due(3_660, 7_200)))
    assert made.replicas == math.ceil(6_300 / 600)
    assert made.binding_deadline_seconds == 660


def test_what_is_ready_is_counted_until_the_deadline() -> None:
    assert decided(pool(ready=10), demand(due(660, 6_600))).replicas == 10
    assert decided(pool(ready=10), demand(due(660, 6_601))).replicas == 11


@pytest.mark.parametrize("passed", [0, 5, 15, 30, 45, 59])
def test_one_cold_start_asks_once(passed: float) -> None:
    """What starts is counted for the time that it will have; a policy that forgets it asks for 4, 5, 7, 10, 20."""
    asked = decided(pool(ready=2, busy=2), demand(due(660, 4_000))).replicas
    assert asked == 2 + math.ceil((4_000 - 2 * 660) / 600)
    later = pool(ready=2, busy=2, starting=[COLD - passed] * (asked - 2))
    assert decided(later, demand(due(660 - passed, 4_000 - 2 * passed))).replicas == asked


def test_replicas_that_drain_do_nothing_for_a_deadline() -> None:
    draining = pool(replicas=[Replica(state="draining", is_busy=True)] * 5)
    assert decided(draining, demand(due(660, 6_000))).replicas == 10


def test_a_job_is_one_replicas_so_long_jobs_ask_for_more() -> None:
    """In 150 s a replica finishes one job of 100 s and not one and a half."""
    made = decided(pool(), demand(due(COLD + 150, 1_000, jobs=10)))
    assert made.replicas == 10


def test_no_more_replicas_than_jobs() -> None:
    assert decided(pool(), demand(due(COLD + 31, 60, jobs=2))).replicas == 2


def test_what_comes_too_late_for_a_start_is_told_and_not_chased() -> None:
    made = decided(pool(ready=1, busy=1), demand(due(30, 600, jobs=600)))
    assert made.unmeetable_jobs == 570
    assert made.replicas <= 4
    assert "570 jobs can no longer be done in time" in made.reason


def test_work_past_its_deadline_is_done_all_the_same() -> None:
    made = decided(pool(), demand(due(-100, 10)))
    assert made.replicas == 1
    assert made.unmeetable_jobs == 1_000


def test_late_work_delays_what_comes_after_it() -> None:
    one = pool(ready=1, busy=1)
    assert decided(one, demand(due(660, 650))).replicas == 1
    assert decided(one, demand(due(-10, 60), due(660, 650))).replicas == 2


def test_speed_is_how_much_a_replica_does_in_a_second() -> None:
    assert decided(pool(speed=2.0), demand(due(660, 6_000))).replicas == 5
    assert decided(pool(ready=5, speed=2.0), demand(due(660, 6_600))).replicas == 5


def test_work_without_a_deadline_keeps_each_replica_busy_for_four_starts() -> None:
    made = decided(pool(), demand(due(NO_DEADLINE, 2_400)))
    assert (made.replicas, made.rule, made.binding_deadline_seconds) == (10, "backlog", None)


def test_a_laptop_scales_up_for_a_big_backlog_at_once() -> None:
    quick = pool(cold_start_seconds=3.0, maximum=4, ready=1, busy=1)
    assert decided(quick, demand(due(NO_DEADLINE, 5))).replicas == 1
    assert decided(quick, demand(due(NO_DEADLINE, 25))).replicas == 2
    assert decided(quick, demand(due(NO_DEADLINE, 5_000))).replicas == 4


def test_a_speed_that_is_only_guessed_counts_double_and_does_not_wait() -> None:
    assert decided(pool(), demand(due(3_600, 100, jobs=10))).replicas == 0
    assert decided(pool(), demand(due(3_600, 100, jobs=10), is_prior=True)).replicas == 1
    assert decided(pool(), demand(due(660, 3_000), is_prior=True)).replicas == 10


def test_deadlines_known_by_the_minute_may_be_a_minute_earlier() -> None:
    assert decided(pool(), demand(due(720, 6_000)), due_step_seconds=60).replicas == 10


def test_running_jobs_are_half_done() -> None:
    busy = pool(ready=2, busy=2)
    assert decided(busy, demand(due(200, 500, jobs=5), running_jobs=2)).replicas == 2
    assert decided(busy, demand(due(200, 500, jobs=5))).replicas == 3


def test_a_swap_is_work_once_for_each_model_that_waits() -> None:
    models = frozenset({"a@1", "b@1"})
    both = [demand(due(660, 300), model=name) for name in sorted(models)]
    shared = pool(models=models, ready=1, busy=1)
    assert decided(shared, *both).replicas == 1
    assert decided(pool(models=models, ready=1, busy=1, swap_seconds=40.0), *both).replicas == 2


def test_jobs_that_take_no_time_are_work_too() -> None:
    assert decided(pool(), demand(Due(in_seconds=NO_DEADLINE, jobs=5, work_seconds=0.0))).replicas == 1


def test_likely_work_is_prepared_for_within_the_horizon_of_a_start() -> None:
    soon, later = due(100, 10, jobs=1), due(1_000, 10, jobs=1)
    assert decided(pool(), demand(forecast=[soon])).replicas == 1
    assert decided(pool(), demand(forecast=[later])).replicas == 0
    made = decided(pool(), demand(forecast=[soon]))
    assert made.work_seconds == 0
    assert made.unmeetable_jobs == 0
