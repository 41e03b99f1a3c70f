"""A pool's limits at one moment. Pure."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

from batchyard.settings import DAYS, PoolSettings, ScheduleSettings


def limits_at(pool: PoolSettings, unix_seconds: float) -> tuple[int, int]:
    """Minimum and maximum: the schedule's that holds, as far as it says; else the pool's own."""
    for schedule in pool.schedule:
        if _holds(schedule, unix_seconds):
            low = pool.min if schedule.min is None else schedule.min
            high = pool.max if schedule.max is None else schedule.max
            return low, high
    return pool.min, pool.max


def _holds(schedule: ScheduleSettings, unix_seconds: float) -> bool:
    """By the clocks on the wall: where they are set forward or back, an hour is missing or comes twice."""
    now = dt.datetime.fromtimestamp(unix_seconds, ZoneInfo(schedule.timezone))
    minute, today, yesterday = now.hour * 60 + now.minute, DAYS[now.weekday()], DAYS[now.weekday() - 1]
    if schedule.from_minute < schedule.to_minute:
        return today in schedule.days and schedule.from_minute <= minute < schedule.to_minute
    begun = today in schedule.days and minute >= schedule.from_minute
    return begun or (yesterday in schedule.days and minute < schedule.to_minute)
