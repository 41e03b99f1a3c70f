"""What people read of a decision, situation by situation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from batchyard_scaler.policy.records import Budget, Demand, Pool, Zone
from tests.unit.scaler.policy.fleets import NO_DEADLINE, decisions, demand, due, pool, spot

WORK = demand(due(900, 5000, jobs=1000))
TOLERANT = demand(due(7200, 50_000, jobs=1000), is_tolerant=True)
WORDS = "1,000 jobs, 5,000 s of one consumer's time"
LARGE = "1,000 jobs, 50,000 s of one consumer's time"
CALM, REFUSED = Zone(name="a"), Zone(name="b", refused_ago_seconds=0.0)


@pytest.mark.parametrize(
    ("pools", "demands", "told"),
    [
        ([pool()], [], {"p": "0: idle: no work"}),
        ([pool(ready=2, idle_for_seconds=20.0)], [], {"p": "2: idle: no work; the surplus leaves in 40 s"}),
        ([pool(ready=2, busy=2)], [], {"p": "2: idle: no work; those that work finish what they hold"}),
        (
            [pool(ready=1, busy=1)],
            [demand(due(NO_DEADLINE, 5000, jobs=1000))],
            {"p": f"21: backlog: {WORDS}; without a deadline, so done soon"},
        ),
        ([pool(ready=1, busy=1)], [WORK], {"p": f"6: deadline: {WORDS}; so many make the deadline in 15 min"}),
        (
            [pool(ready=1, busy=1)],
            [demand(due(30, 500, jobs=100))],
            {
                "p": "2: deadline: 100 jobs, 500 s of one consumer's time; late already, so done soon; "
                "94 jobs can no longer be done in time"
            },
        ),
        (
            [pool()],
            [demand(due(3600, 0.1, jobs=1))],
            {
                "p": "0: hold: 1 job, less than 1 s of one consumer's time; "
                "a start within 59 min is in time for the deadline in 60 min"
            },
        ),
        ([pool(ready=2, is_paused=True)], [WORK], {"p": f"0: paused: {WORDS}; paused by hand"}),
        ([pool(pinned=0)], [WORK], {"p": f"0: pinned: {WORDS}; fixed at 0 by hand"}),
        ([pool(minimum=2, is_scheduled=True)], [], {"p": "2: minimum: no work; min is 2 by the schedule"}),
        ([pool(maximum=0, is_scheduled=True)], [WORK], {"p": f"0: idle: {WORDS}; max is 0 by the schedule"}),
        (
            [pool(maximum=2)],
            [WORK],
            {"p": f"2: maximum: {WORDS}; max is 2; 664 jobs can no longer be done in time"},
        ),
        (
            [pool(price_per_hour=1.0), spot(zones=[REFUSED])],
            [TOLERANT],
            {
                "p": f"0: idle: {LARGE}; left to spot while that is in time",
                "spot": f"100: maximum: {LARGE}; max is 100; no zone can be counted on now",
            },
        ),
        (
            [pool(price_per_hour=1.0), spot(zones=[CALM, REFUSED])],
            [TOLERANT],
            {
                "p": f"0: idle: {LARGE}; left to spot while that is in time",
                "spot": f"100: maximum: {LARGE}; max is 100; avoiding b",
            },
        ),
        (
            [pool()],
            [demand(due(900, 500, jobs=500), is_prior=True)],
            {
                "p": "2: deadline: 500 jobs, perhaps 500 s of one consumer's time, which nobody has measured yet; "
                "so many make the deadline in 15 min"
            },
        ),
        (
            [pool()],
            [demand(forecast=[due(30, 500, jobs=50)])],
            {"p": "3: deadline: no work; for what usually comes at this hour"},
        ),
    ],
)
def test_a_decision_in_words(pools: Sequence[Pool], demands: Sequence[Demand], told: dict[str, str]) -> None:
    assert words(pools, *demands) == told


@pytest.mark.parametrize(
    ("budget", "limit"),
    [
        (Budget(per_hour=5.0, left_this_hour=0.0), "$5.00 an hour"),
        (Budget(per_month=5.0, left_this_month=0.0), "$5.00 a month"),
    ],
)
def test_a_short_budget_in_words(budget: Budget, limit: str) -> None:
    told = words([pool(price_per_hour=6.0)], WORK, budget=budget)["p"]
    assert f"0: budget: {WORDS}; the budget of {limit} allows no more; 1,000 jobs can no longer be done" in told


def words(pools: Sequence[Pool], *demands: Demand, **changed: Any) -> dict[str, str]:
    """As `batchyard status` shows them."""
    return {
        name: f"{made.replicas}: {made.rule}: {made.reason}"
        for name, made in decisions(pools, *demands, **changed).items()
    }
