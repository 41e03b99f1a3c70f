"""A pool's limits by the hour."""

import datetime as dt
from zoneinfo import ZoneInfo

import pytest

from batchyard.settings import PoolSettings, ScheduleSettings
from batchyard_scaler.signals.schedule import limits_at

BERLIN = ZoneInfo("Europe/Berlin")
NIGHTS = ScheduleSettings(
    days=("fri", "sat"), from_minute=22 * 60, to_minute=6 * 60, timezone="Europe/Berlin", min=2, max=9
)
NOON = ScheduleSettings(from_minute=12 * 60, to_minute=13 * 60, max=1)
POOL = PoolSettings(name="p", models=("m",), min=0, max=4, schedule=(NIGHTS, NOON))


@pytest.mark.parametrize(
    ("day", "clock", "limits"),
    [
        (17, "21:59", (0, 4)),  # a Friday
        (17, "22:00", (2, 9)),
        (18, "05:59", (2, 9)),
        (18, "06:00", (0, 4)),
        (18, "23:00", (2, 9)),
        (19, "05:00", (2, 9)),
        (19, "22:30", (0, 4)),
        (20, "05:00", (0, 4)),
        (20, "13:30", (0, 1)),  # 12:30 UTC
    ],
)
def test_the_schedule_that_holds_gives_the_limits(day: int, clock: str, limits: tuple[int, int]) -> None:
    hour, minute = map(int, clock.split(":"))
    now = dt.datetime(2026, 7 if day < 0 else 11, day + 3, hour, minute, tzinfo=BERLIN)
    assert limits_at(POOL, now.timestamp()) == limits
