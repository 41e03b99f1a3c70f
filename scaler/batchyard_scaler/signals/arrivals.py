"""When jobs usually come, and with how much time: learned by the hour of the day, foretold for the next minutes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from batchyard.jobs import BUCKET_MS
from batchyard.pool_figures import HOUR_MS
from batchyard_scaler.policy.records import Due

DAY_HOURS = 24
FADE = 0.3
"""Weight of the newest day, once there are some."""
LEAST_DAYS = 2
"""Seen of an hour of the day before anything is foretold of it: a day that was never repeated is no season."""
UPPER = 1.3
"""Standard deviations above the mean: about nine days of ten stay below."""
STEPS = 4
"""Into which the horizon is cut: work that arrives later is due later."""
SLACK_BINS = 16
"""Of minutes, each twice the one before; and one for jobs without a deadline."""
SLACK_FADE = 0.98
SLACK_SHARE = 0.1
"""Of jobs, with less slack than the usual one."""
LEAST_SLACK_WEIGHT = 5.0


class Arrivals:
    """One queue's season and slack. Owned by one thread."""

    def __init__(self, known: Mapping[str, Any] | None = None) -> None:
        known = known or {}
        self._hours: list[list[float]] = [list(hour) for hour in known.get("hours", ())] or [
            [0, 0.0, 0.0, 0.0] for _ in range(DAY_HOURS)
        ]
        """Of each hour of the day: days seen; mean jobs, mean cost, and variance of the cost."""
        self._slack: list[float] = list(known.get("slack", ())) or [0.0] * (SLACK_BINS + 1)
        self._hour: int | None = None
        self._at_start = (0, 0)
        self._is_whole = False
        """The present hour was watched from its beginning."""
        self._buckets: dict[int, int] = {}

    def known(self) -> dict[str, Any]:
        """For the next scaler: JSON-like, and compact."""
        hours = [[int(days), *(round(value, 3) for value in rest)] for days, *rest in self._hours]
        return {"hours": hours, "slack": [round(weight, 2) for weight in self._slack]}

    def see(self, total: tuple[int, int], buckets: Mapping[int, Sequence[int]], *, now_ms: int) -> bool:
        """Take in the jobs and cost that ever came, and what waits by deadline bucket; whether an hour was learned."""
        self._see_slack(buckets, now_ms=now_ms)
        hour = now_ms // HOUR_MS
        if hour == self._hour:
            return False
        is_learned = self._is_whole
        if self._hour is not None and is_learned:
            jobs, cost = (now - then for now, then in zip(total, self._at_start, strict=True))
            self._learn(self._hour % DAY_HOURS, jobs=jobs, cost=cost)
        # A scaler that has just started, or was away, does not know how the hour began.
        self._is_whole = self._hour is not None and hour == self._hour + 1
        self._hour, self._at_start = hour, total
        return is_learned

    def _learn(self, hour: int, *, jobs: int, cost: int) -> None:
        jobs, cost = max(0, jobs), max(0, cost)  # jobs that moved to another queue are no arrivals of the past
        days, mean_jobs, mean_cost, variance = self._hours[hour]
        weight = max(FADE, 1 / (days + 1))
        off = cost - mean_cost
        self._hours[hour] = [
            days + 1,
            mean_jobs + weight * (jobs - mean_jobs),
            mean_cost + weight * off,
            (1 - weight) * (variance + weight * off * off),
        ]

    def _see_slack(self, buckets: Mapping[int, Sequence[int]], *, now_ms: int) -> None:
        """What grew since the last look has arrived; the rest that came and went between looks is like it."""
        grown = {bucket: sums[0] - self._buckets.get(bucket, 0) for bucket, sums in buckets.items()}
        self._buckets = {bucket: sums[0] for bucket, sums in buckets.items()}
        new = {bucket: jobs for bucket, jobs in grown.items() if jobs > 0}
        if not new:
            return
        self._slack = [weight * SLACK_FADE for weight in self._slack]
        total = sum(new.values())
        for bucket, jobs in new.items():
            self._slack[_bin(bucket, now_ms=now_ms)] += jobs / total

    @property
    def slack(self) -> Sequence[float]:
        """How much of what came lately had so much time; see `usual_slack_seconds`."""
        return self._slack

    def forecast(self, *, horizon_seconds: float, seconds_per_unit: float, now_ms: int) -> list[Due]:
        """What is likely to arrive within the horizon, an upper quantile, by the time when it will be due."""
        slack = usual_slack_seconds([self._slack])
        found = []
        for step in range(STEPS):
            end = (step + 1) * horizon_seconds / STEPS
            days, mean_jobs, mean_cost, variance = self._hours[(now_ms + round(end * 1000)) // HOUR_MS % DAY_HOURS]
            share = horizon_seconds / STEPS / 3600
            upper = mean_cost + UPPER * math.sqrt(variance)
            if days >= LEAST_DAYS and upper > 0:
                jobs = math.ceil(mean_jobs * share)
                work = upper * share * seconds_per_unit
                found.append(Due(in_seconds=end + (math.inf if slack is None else slack), jobs=jobs, work_seconds=work))
        return found


def usual_slack_seconds(weights: Iterable[Sequence[float]]) -> float | None:
    """What nearly all jobs of some queues have between arrival and deadline; None: not known, or they have none."""
    sums = [sum(column) for column in zip(*weights, strict=True)]
    total, seen = sum(sums), 0.0
    for place, weight in enumerate(sums[:-1]):
        seen += weight
        if total >= LEAST_SLACK_WEIGHT and seen >= SLACK_SHARE * total:
            return 60.0 * 2.0 ** (place - 1) if place else 0.0
    return None


def _bin(bucket: int, *, now_ms: int) -> int:
    """0: less than a minute; n: at least 2 ** (n - 1) minutes; the last: no deadline."""
    if bucket == 0:
        return SLACK_BINS
    # A bucket's number is rounded up.
    minutes = max(0, (bucket - 1) * BUCKET_MS - now_ms) // BUCKET_MS
    return min(SLACK_BINS - 1, minutes.bit_length())
