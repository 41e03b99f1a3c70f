"""A short budget: no over-provision, then no on-demand replicas for tolerant work, then less of the least value."""

import pytest

from batchyard_scaler.policy.budget import allowed_per_hour
from batchyard_scaler.policy.records import Budget, Zone
from tests.unit.scaler.policy.fleets import COLD, decided, decisions, demand, due, pool, spot

REFUSING = [Zone(name="a", refused_ago_seconds=1.0)]


def spending(per_hour: float) -> Budget:
    """Nothing is left but what comes anew each hour."""
    return Budget(per_hour=per_hour, left_this_hour=0.0)


@pytest.mark.parametrize(
    ("budget", "allowed"),
    [
        (Budget(), None),
        (Budget(per_hour=4.0, left_this_hour=0.0), 4.0),
        (Budget(per_hour=4.0, left_this_hour=-1.0), 4.0),
        (Budget(per_hour=4.0, left_this_hour=4.0), 20.0),
        (Budget(per_hour=4.0), 20.0),
        (Budget(per_month=720.0, left_this_month=48.0), 2.0),
        (Budget(per_hour=4.0, left_this_hour=0.0, per_month=720.0, left_this_month=48.0), 2.0),
    ],
)
def test_what_may_be_spent_an_hour(budget: Budget, allowed: float | None) -> None:
    assert allowed_per_hour(budget) == allowed


def test_a_budget_that_suffices_changes_nothing() -> None:
    priced = pool(price_per_hour=1.0)
    work = demand(due(660, 6_000))
    assert decided(priced, work, budget=spending(10.0)) == decided(priced, work)


def test_a_short_budget_delays_work_and_says_so() -> None:
    made = decided(pool(price_per_hour=1.0), demand(due(660, 6_000)), budget=spending(4.0))
    assert (made.replicas, made.rule) == (4, "budget")
    assert "the budget of $4.00 an hour allows no more" in made.reason
    assert made.unmeetable_jobs == pytest.approx((6_000 - 4 * 600) * 100)


def test_what_runs_is_never_sent_away_and_a_minimum_stays() -> None:
    busy = pool(price_per_hour=1.0, ready=6, busy=6)
    assert decided(busy, demand(due(660, 6_000)), budget=spending(4.0)).replicas == 6
    assert decided(pool(price_per_hour=1.0, minimum=5), budget=spending(4.0)).replicas == 5


def test_over_provision_goes_first() -> None:
    tight = demand(due(102, 395, jobs=395), is_tolerant=True)
    one = spot(ready=4, busy=4, price_per_hour=1.0)
    assert decided(one, tight).replicas == 5
    assert decided(one, tight, budget=spending(4.5)).replicas == 4


def test_then_on_demand_for_tolerant_work_and_firm_work_last() -> None:
    pools = [pool("od", price_per_hour=1.0), spot(zones=REFUSING, price_per_hour=0.1)]
    work = [demand(due(660, 1_200)), demand(due(3 * COLD, 350), is_tolerant=True)]
    plenty = decisions(pools, *work)
    assert plenty["od"].replicas == 5
    short = decisions(pools, *work, budget=spending(2.0 + plenty["spot"].replicas * 0.1))
    assert short["od"].replicas == 2
    assert short["spot"].replicas == plenty["spot"].replicas
    assert short["od"].unmeetable_jobs > 0


def test_then_what_is_of_least_value() -> None:
    pools = [pool(name, price_per_hour=1.0, models=frozenset({f"{name}@1"})) for name in ("dear", "cheap")]
    made = decisions(
        pools,
        demand(due(660, 1_800), model="dear@1", value=9.0),
        demand(due(660, 1_800), model="cheap@1", value=1.0),
        budget=spending(4.0),
    )
    assert (made["dear"].replicas, made["cheap"].replicas) == (3, 1)
    assert (made["dear"].rule, made["cheap"].rule) == ("deadline", "budget")


def test_pools_without_a_price_cost_nothing_that_is_known() -> None:
    assert decided(pool(price_per_hour=None), demand(due(660, 6_000)), budget=spending(1.0)).replicas == 10
