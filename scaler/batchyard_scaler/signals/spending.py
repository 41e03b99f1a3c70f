"""What pools cost: the time of their consumers, at the pool's price, by the hour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from batchyard.pool_figures import HOUR_MS, first_hour_of_month
from batchyard.settings import BudgetSettings, PoolSettings
from batchyard.store.base import ConsumerInfo, SpendRow
from batchyard_scaler.policy.records import Budget

BUCKET_HOURS = 24
"""Before which nobody remembers what was spent too much."""
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


def first_hour_of_budget(now_ms: int) -> int:
    """From when on it matters what was spent."""
    return min(first_hour_of_month(now_ms), now_ms // HOUR_MS - BUCKET_HOURS)


def budget_left(limits: BudgetSettings, rows: Iterable[SpendRow], *, now_ms: int) -> Budget:
    """What may still be spent; `rows` are those from `first_hour_of_budget` on.

    The hour's limit fills a bucket of an hour's size, steadily: what was not spent in a quiet hour may be spent in the
    next one, and what was spent too much is missing then. The month's is that of the calendar, in UTC.
    """
    by_hour: dict[int, float] = {}
    for row in rows:
        by_hour[row.hour] = by_hour.get(row.hour, 0.0) + row.dollars
    first = first_hour_of_month(now_ms)
    this_month = sum(dollars for hour, dollars in by_hour.items() if hour >= first)
    return Budget(
        per_hour=limits.per_hour,
        left_this_hour=None if limits.per_hour is None else _in_bucket(limits.per_hour, by_hour, now_ms=now_ms),
        per_month=limits.per_month,
        left_this_month=None if limits.per_month is None else limits.per_month - this_month,
    )


def _in_bucket(size: float, by_hour: Mapping[int, float], *, now_ms: int) -> float:
    now_hour, left = now_ms // HOUR_MS, size
    for hour in range(now_hour - BUCKET_HOURS, now_hour):
        left = min(size, left + size - by_hour.get(hour, 0.0))
    return min(size, left + size * (now_ms % HOUR_MS) / HOUR_MS - by_hour.get(now_hour, 0.0))
