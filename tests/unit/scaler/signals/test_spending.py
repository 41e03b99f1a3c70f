"""What consumers cost."""

import datetime as dt

import pytest

from batchyard.pool_figures import HOUR_MS, first_hour_of_month, quantile
from batchyard.settings import BudgetSettings, PoolSettings
from batchyard.store.base import SpendRow
from batchyard_scaler.policy.records import Budget
from batchyard_scaler.signals.spending import budget_left, spent_since
from tests.unit.scaler.queues import consumer

POOLS = {
    "p": PoolSettings(name="p", models=("m",), price_per_hour=3.6),
    "free": PoolSettings(name="free", models=("m",)),
}
NOON_MS = 472_000 * HOUR_MS


def test_time_is_counted_once_by_hour_and_by_pool() -> None:
    consumers = [
        consumer(1, started_ms=0),
        consumer(2, started_ms=NOON_MS + 30_000),
        consumer(3, pool="free", state="draining", started_ms=0),
        consumer(4, state="gone", started_ms=0, lease_ms=NOON_MS + 10_000),
        consumer(5, state="dead", started_ms=0, lease_ms=NOON_MS - 90_000),
    ]
    found = spent_since(NOON_MS - 60_000, NOON_MS + 60_000, consumers, POOLS)
    hour = NOON_MS // HOUR_MS
    assert [(row.pool, row.hour, row.replica_seconds, round(row.dollars, 6)) for row in found] == [
        ("free", hour - 1, 60.0, 0.0),
        ("free", hour, 60.0, 0.0),
        ("p", hour - 1, 120.0, 0.12),
        ("p", hour, 100.0, 0.1),
    ]


def dollars(hours_ago: int, amount: float, *, pool: str = "p") -> SpendRow:
    return SpendRow(pool=pool, hour=NOON_MS // HOUR_MS - hours_ago, replica_seconds=1.0, dollars=amount)


def test_what_is_left_of_a_month() -> None:
    rows = [dollars(ago, 2.0, pool=pool) for pool in "pq" for ago in (0, 50, 300)]  # the last ones in the month before
    left = budget_left(BudgetSettings(per_month=7.0), rows, now_ms=NOON_MS)
    assert (left.per_hour, left.left_this_hour, left.left_this_month) == (None, None, -1.0)
    assert budget_left(BudgetSettings(), rows, now_ms=NOON_MS) == Budget()


@pytest.mark.parametrize(
    ("rows", "minutes", "left"),
    [
        ([], 0, 10.0),
        ([dollars(0, 4.0), dollars(0, 4.0, pool="q")], 30, 7.0),
        ([dollars(5, 10.0), dollars(1, 10.0)], 0, 10.0),
        ([dollars(1, 18.0)], 0, 2.0),
        ([dollars(2, 18.0), dollars(0, 1.0)], 15, 10.0),
        ([dollars(1, 24.0)], 30, 1.0),
        ([dollars(0, 16.0)], 30, -1.0),
    ],
)
def test_an_hours_limit_fills_a_bucket(rows: list[SpendRow], minutes: int, left: float) -> None:
    found = budget_left(BudgetSettings(per_hour=10.0), rows, now_ms=NOON_MS + minutes * 60_000)
    assert found.left_this_hour == left


def test_months_are_those_of_utc() -> None:
    at = dt.datetime(2026, 3, 1, 0, 30, tzinfo=dt.UTC)
    assert first_hour_of_month(round(at.timestamp() * 1000)) * 3600 == at.timestamp() - 1800


def test_quantiles_of_small_samples() -> None:
    assert [quantile([3.0, 1.0, 2.0], share) for share in (0.0, 0.3, 0.5, 0.67, 0.9, 1.0)] == [1, 1, 2, 3, 3, 3]
    assert quantile([float(n) for n in range(1, 11)], 0.9) == 9
