"""What pools cost: the time of their consumers, at the pool's price, by the hour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from batchyard.pool_figures import HOUR_MS
from batchyard.settings import BudgetSettings, PoolSettings
from batchyard.store.base import ConsumerInfo, SpendRow
from batchyard_scaler.policy.records import Budget

AWAY = {"gone", "dead"}
CATCH_UP_MS = HOUR_MS
"""Consumers that left are known for an hour: what was not counted by then is lost."""


def spent_since(
    until_ms: int, now_ms: int, consumers: Iterable[ConsumerInfo], pools: Mapping[str, PoolSettings]
) -> list[SpendRow]:
    """What consumers took between the two moments. One that is gone took its time until its lease was over."""
    seconds: dict[tuple[str, int], float] = {}
    for info in consumers:
        end_ms = min(now_ms, info.lease_until_ms) if info.state in AWAY else now_ms
        start_ms = max(until_ms, now_ms - CATCH_UP_MS, info.started_at_ms)
        while start_ms < end_ms:
            hour = start_ms // HOUR_MS
            step_ms = min(end_ms, (hour + 1) * HOUR_MS) - start_ms
            seconds[info.pool, hour] = seconds.get((info.pool, hour), 0.0) + step_ms / 1000
            start_ms += step_ms
    return [
        SpendRow(pool=pool, hour=hour, replica_seconds=took, dollars=took / 3600 * _price(pools.get(pool)))
        for (pool, hour), took in sorted(seconds.items())
    ]


def _price(pool: PoolSettings | None) -> float:
    return 0.0 if pool is None or pool.price_per_hour is None else pool.price_per_hour


def budget_left(limits: BudgetSettings, rows: Iterable[SpendRow], *, now_ms: int) -> Budget:
    """What may still be spent this hour and this month; `rows` are those of the month."""
    hour = now_ms // HOUR_MS
    this_hour = this_month = 0.0
    for row in rows:
        this_month += row.dollars
        if row.hour == hour:
            this_hour += row.dollars
    return Budget(
        per_hour=limits.per_hour,
        left_this_hour=None if limits.per_hour is None else limits.per_hour - this_hour,
        per_month=limits.per_month,
        left_this_month=None if limits.per_month is None else limits.per_month - this_month,
    )
