"""What a short budget allows: no over-provision first, then no on-demand replicas for tolerant work, then less of what
is of least value. What works is never sent away for it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from batchyard_scaler.policy.choice import unit_price
from batchyard_scaler.policy.market import Want
from batchyard_scaler.policy.records import Budget, Pool
from batchyard_scaler.policy.surplus import busy_of

BURST_HOURS = 0.25
"""What is left of an hour's budget may be spent this fast."""
BURST_OF_MONTH_HOURS = 24.0


def allowed_per_hour(budget: Budget) -> float | None:
    """Dollars an hour that may be spent from now on; None: no limit."""
    limits = []
    if budget.per_hour is not None:
        left = budget.per_hour if budget.left_this_hour is None else max(0.0, budget.left_this_hour)
        limits.append(budget.per_hour + left / BURST_HOURS)
    if budget.per_month is not None:
        left = budget.per_month if budget.left_this_month is None else max(0.0, budget.left_this_month)
        limits.append(left / BURST_OF_MONTH_HOURS)
    return min(limits, default=None)


def ceilings(wants: Sequence[Want], *, budget: Budget) -> dict[str, int] | None:
    """How many replicas each pool may have; None where the budget suffices."""
    allowed = allowed_per_hour(budget)
    over = sum(want.replicas * _price(want.pool) for want in wants) - (allowed or 0.0)
    if allowed is None or over <= 0:
        return None
    most = {want.pool.name: want.replicas for want in wants}
    for want, count in _cuts(wants):
        pool = want.pool
        if _price(pool) > 0 and over > 0:
            cut = max(0, min(count, math.ceil(over / _price(pool)), most[pool.name] - _floor(pool)))
            most[pool.name] -= cut
            over -= cut * _price(pool)
    return most


def _cuts(wants: Sequence[Want]) -> list[tuple[Want, int]]:
    """What to do without, first things first."""
    by_value = sorted(wants, key=_value)
    dearest = sorted(wants, key=lambda want: -unit_price(want.pool))
    return [
        *((want, want.extra) for want in dearest),
        *((want, want.fallback) for want in dearest),
        *((want, want.replicas) for want in by_value),
    ]


def _floor(pool: Pool) -> int:
    """What works, and the minimum, stay."""
    return max(pool.minimum, busy_of(pool))


def _value(want: Want) -> float:
    """Of the pool's work in time, for a dollar."""
    cost = want.work_seconds * unit_price(want.pool)
    return sum(piece.jobs * piece.value for piece in want.pieces) / cost if cost else 0.0


def _price(pool: Pool) -> float:
    return pool.price_per_hour or 0.0
