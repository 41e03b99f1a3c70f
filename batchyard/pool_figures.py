"""Figures about pools that the API, its metrics and the scaler reckon alike. Pure."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence

HOUR_MS = 3_600_000


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all are not above; of at least one value."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


def first_hour_of_month(now_ms: int) -> int:
    """Of the calendar month in UTC, as whole hours since the epoch."""
    now = dt.datetime.fromtimestamp(now_ms / 1000, dt.UTC)
    return round(dt.datetime(now.year, now.month, 1, tzinfo=dt.UTC).timestamp()) // 3600
