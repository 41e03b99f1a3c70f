"""The policy as a whole: limits, what people fix by hand, explanations and refusals."""

import math
import time

import pytest

from batchyard_scaler.policy.checking import ContradictoryFleet
from batchyard_scaler.policy.deciding import decide
from batchyard_scaler.policy.explaining import span
from batchyard_scaler.policy.records import Budget, Demand, Due, Pool, Zone
from tests.unit.scaler.policy.fleets import NO_DEADLINE, decided, decisions, demand, due, fleet, pool, spot

BIG = demand(due(660, 60_000))


def test_nothing_is_wanted_of_pools_without_work() -> None:
    made = decided(pool())
    assert (made.replicas, made.reason, made.next_look_seconds) == (0, "no work", None)


def test_the_maximum_is_obeyed_and_told() -> None:
    made = decided(pool(maximum=7), BIG)
    assert (made.replicas, made.rule) == (7, "maximum")
    assert "max is 7" in made.reason
    assert made.unmeetable_jobs == pytest.approx((60_000 - 4_200) * 100)


def test_the_minimum_is_obeyed() -> None:
    assert decided(pool(minimum=3)).replicas == 3
    assert decided(pool(minimum=3), demand(due(NO_DEADLINE, 1))).replicas == 3


@pytest.mark.parametrize(("pinned", "replicas"), [(0, 0), (4, 4), (200, 100)])
def test_a_pin_decides(pinned: int, replicas: int) -> None:
    made = decided(pool(minimum=2, ready=9, busy=9, pinned=pinned), BIG)
    assert (made.replicas, made.rule) == (replicas, "pinned")
    assert f"fixed at {pinned} by hand" in made.reason


def test_a_paused_pool_wants_none() -> None:
    made = decided(pool(minimum=2, ready=9, busy=9, is_paused=True, pinned=4, never_loaded=["m@1"]), BIG)
    assert (made.replicas, made.rule) == (0, "paused")


def test_a_version_that_nobody_has_loaded_gets_one() -> None:
    made = decided(pool(never_loaded=["m@1", "n@2"]))
    assert (made.replicas, made.rule) == (1, "load")
    assert "m@1, n@2 to be loaded for the first time" in made.reason
    assert decided(pool(never_loaded=["m@1"], maximum=0)).replicas == 0
    assert decided(pool(never_loaded=["m@1"]), demand(due(36_000, 1, jobs=1))).replicas == 1


def test_work_that_no_pool_serves_is_nobodys() -> None:
    assert decided(pool(), demand(due(660, 6_000), model="other@1")).replicas == 0


def test_pools_apart_are_sized_apart() -> None:
    pools = [pool(name, models=frozenset({f"{name}@1"})) for name in ("a", "b", "c")]
    made = decisions(pools, demand(due(660, 6_000), model="a@1"), demand(due(660, 1_200), model="c@1"))
    assert [made[name].replicas for name in ("a", "b", "c")] == [10, 0, 2]


def test_a_reason_tells_the_work_the_rule_and_the_deadline() -> None:
    made = decided(pool(), demand(due(7_260, 72_000, jobs=72_000)))
    assert made.reason == "72,000 jobs, 72,000 s of one consumer's time; so many make the deadline in 2.0 h"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (119, "119 s"), (900, "15 min"), (9_000, "2.5 h"), (-30, "30 s ago")]
)
def test_times_for_people(seconds: float, words: str) -> None:
    assert span(seconds) == words


@pytest.mark.parametrize(
    ("pools", "demands", "budget", "fault"),
    [
        ([pool(minimum=3, maximum=2)], [], None, "pool p: min is 3 and max is 2"),
        ([pool(minimum=-1)], [], None, "min is -1"),
        ([pool(), pool()], [], None, "pool p is told twice"),
        ([pool(pinned=-1)], [], None, "pinned to -1"),
        ([pool(speed=0.0)], [], None, "speed is 0.0"),
        ([pool(cold_start_seconds=math.nan)], [], None, "cold_start_seconds is nan"),
        ([pool(price_per_hour=-1.0)], [], None, "price_per_hour is -1.0"),
        ([spot(zones=[Zone(name="a"), Zone(name="a")])], [], None, "zone a is told twice"),
        ([pool()], [demand(Due(in_seconds=1, jobs=-1, work_seconds=1))], None, "-1 jobs"),
        ([pool()], [demand(Due(in_seconds=1, jobs=1, work_seconds=-1))], None, "of -1 s"),
        ([pool()], [demand(Due(in_seconds=math.nan, jobs=1, work_seconds=1))], None, "due in nan s"),
        ([pool()], [], Budget(per_hour=-5.0), "per_hour is -5.0"),
    ],
)
def test_what_contradicts_itself_is_refused(
    pools: list[Pool], demands: list[Demand], budget: Budget | None, fault: str
) -> None:
    with pytest.raises(ContradictoryFleet, match=fault):
        decide(fleet(pools, demands, budget=budget))


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ContradictoryFleet, match=r"min is 3.*speed is 0"):
        decide(fleet([pool(minimum=3, maximum=2, speed=0.0)]))


def test_two_hundred_queues_take_milliseconds() -> None:
    """The bound is ten times what a quiet machine needs."""
    models = [f"m{index}@1" for index in range(100)]
    demands = [
        demand(*(due(60.0 * step, 30) for step in range(1, 16)), model=model, is_tolerant=is_tolerant)
        for model in models
        for is_tolerant in (False, True)
    ]
    shared = frozenset(models)
    pools = [pool(ready=100, busy=100, models=shared), spot(ready=100, busy=100, models=shared)]
    told = fleet(pools, demands)
    began = time.process_time()
    decide(told)
    assert time.process_time() - began < 0.1
