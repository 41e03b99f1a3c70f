"""The first start waits for the latest safe moment."""

from typing import Any

import pytest

from tests.unit.scaler.policy.fleets import COLD, NO_DEADLINE, decided, demand, due, pool


def test_the_first_start_waits_and_says_until_when() -> None:
    made = decided(pool(), demand(due(3_600, 30, jobs=1)))
    assert (made.replicas, made.rule) == (0, "hold")
    assert made.next_look_seconds is not None
    assert 3_600 - COLD - 30 - 200 < made.next_look_seconds < 3_600 - COLD - 30
    assert "in time for the deadline in 60 min" in made.reason


def test_at_that_moment_it_starts_and_is_in_time() -> None:
    wait = decided(pool(), demand(due(3_600, 30, jobs=1))).next_look_seconds
    assert wait is not None
    just_before = decided(pool(), demand(due(3_600 - wait + 1, 30, jobs=1)))
    then = decided(pool(), demand(due(3_600 - wait, 30, jobs=1)))
    assert (just_before.replicas, then.replicas, then.unmeetable_jobs) == (0, 1, 0)


def test_more_work_starts_sooner() -> None:
    waits = [decided(pool(), demand(due(3_600, work, jobs=10))).next_look_seconds for work in (30, 60, 300)]
    assert None not in waits
    assert waits == sorted(waits, key=lambda wait: -(wait or 0))


def test_a_swap_pool_leaves_time_for_swaps_in_between() -> None:
    slow = decided(pool(swap_seconds=23.0), demand(due(3_600, 30, jobs=1))).next_look_seconds
    quick = decided(pool(), demand(due(3_600, 30, jobs=1))).next_look_seconds
    assert slow is not None
    assert quick is not None
    assert quick - slow > 23.0


@pytest.mark.parametrize("changed", [{"is_interactive": True}, {"is_prior": True}])
def test_no_one_waits_who_need_not(changed: dict[str, Any]) -> None:
    assert decided(pool(), demand(due(3_600, 30, jobs=1), **changed)).replicas == 1


def test_work_without_a_deadline_is_not_held() -> None:
    assert decided(pool(), demand(due(NO_DEADLINE, 30), due(3_600, 30))).replicas == 1


def test_work_that_pays_for_the_start_is_not_held() -> None:
    assert decided(pool(), demand(due(36_000, 10 * COLD))).replicas == 1
    assert decided(pool(), demand(due(36_000, 9 * COLD))).replicas == 0


def test_a_pool_that_has_a_replica_holds_nothing() -> None:
    assert decided(pool(ready=1, busy=1), demand(due(3_600, 30))).replicas == 1
    assert decided(pool(starting=[30.0]), demand(due(3_600, 30))).replicas == 1
    assert decided(pool(minimum=1), demand(due(3_600, 30))).replicas == 1
