"""Fleets that cannot be as they are told are refused, all faults at once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from batchyard_scaler.policy.records import Budget, Demand, Fleet, Pool


class ContradictoryFleet(ValueError):
    """What the policy was told contradicts itself; the message names every fault."""


def check(fleet: Fleet) -> None:
    """ContradictoryFleet with every fault, if there is one."""
    faults = [
        *(
            f"pool {name} is told twice"
            for name, count in Counter(pool.name for pool in fleet.pools).items()
            if count > 1
        ),
        *(fault for pool in fleet.pools for fault in _of_pool(pool)),
        *(fault for demand in fleet.demands for fault in _of_demand(demand)),
        *_of_budget(fleet.budget),
    ]
    if faults:
        raise ContradictoryFleet("; ".join(faults))


def _of_pool(pool: Pool) -> Iterator[str]:
    if not 0 <= pool.minimum <= pool.maximum:
        yield f"pool {pool.name}: min is {pool.minimum} and max is {pool.maximum}; allowed is 0 ≤ min ≤ max"
    if pool.pinned is not None and pool.pinned < 0:
        yield f"pool {pool.name}: pinned to {pool.pinned}; allowed is 0 or more"
    if not _is_amount(pool.speed) or not pool.speed:
        yield f"pool {pool.name}: speed is {pool.speed}; allowed is a number above 0"
    for name in ("cold_start_seconds", "restart_cost_seconds", "swap_seconds", "price_per_hour"):
        value = getattr(pool, name)
        if value is not None and not _is_amount(value):
            yield f"pool {pool.name}: {name} is {value}; allowed is a number from 0"
    zones = Counter(zone.name for zone in pool.zones)
    yield from (f"pool {pool.name}: zone {name} is told twice" for name, count in zones.items() if count > 1)


def _of_demand(demand: Demand) -> Iterator[str]:
    for due in (*demand.due, *demand.forecast):
        if due.jobs < 0 or not _is_amount(due.work_seconds):
            yield f"{demand.queue}: {due.jobs} jobs of {due.work_seconds} s; allowed are numbers from 0"
        if math.isnan(due.in_seconds):
            yield f"{demand.queue}: work is due in {due.in_seconds} s; allowed is a number, or inf without a deadline"


def _of_budget(budget: Budget) -> Iterator[str]:
    for name in ("per_hour", "per_month"):
        value = getattr(budget, name)
        if value is not None and not _is_amount(value):
            yield f"budget: {name} is {value}; allowed is a number from 0"


def _is_amount(value: float) -> bool:
    return math.isfinite(value) and value >= 0
