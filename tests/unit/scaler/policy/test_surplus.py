"""An idle replica is kept no longer than its restart costs."""

import pytest

from tests.unit.scaler.policy.fleets import COLD, NO_DEADLINE, decided, demand, due, pool


@pytest.mark.parametrize(("idle", "replicas"), [(0.0, 3), (59.0, 3), (60.0, 0), (1_000.0, 0)])
def test_idle_replicas_stay_as_long_as_a_restart_costs(idle: float, replicas: int) -> None:
    assert decided(pool(ready=3, idle_for_seconds=idle)).replicas == replicas


def test_a_surplus_that_is_kept_says_how_long() -> None:
    made = decided(pool(ready=3, idle_for_seconds=20.0))
    assert (made.rule, made.next_look_seconds) == ("idle", 40.0)
    assert made.reason == "no work; the surplus leaves in 40 s"


def test_where_jobs_can_wait_for_a_start_no_replica_waits_for_jobs() -> None:
    assert decided(pool(ready=3, usual_slack_seconds=3 * COLD)).replicas == 0
    assert decided(pool(ready=3, usual_slack_seconds=2 * COLD)).replicas == 3


def test_who_works_is_never_sent_away() -> None:
    idle_long = pool(ready=5, busy=4, idle_for_seconds=1_000.0)
    assert decided(idle_long, demand(due(3_600, 40, jobs=4), running_jobs=4)).replicas == 4


def test_what_starts_is_awaited_while_there_is_work() -> None:
    assert decided(pool(ready=1, busy=1, starting=[30.0] * 4), demand(due(3_600, 10))).replicas == 5
    assert decided(pool(starting=[30.0] * 4, usual_slack_seconds=3_600.0)).replicas == 0


def test_a_minimum_stays() -> None:
    made = decided(pool(ready=3, minimum=2, idle_for_seconds=100.0))
    assert (made.replicas, made.rule, made.reason) == (2, "minimum", "no work; min is 2")


def test_the_last_replica_stays_while_a_job_runs() -> None:
    assert decided(pool(ready=1, idle_for_seconds=100.0), demand(due(NO_DEADLINE, 1), running_jobs=1)).replicas == 1
