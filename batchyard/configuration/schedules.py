"""`[[pools.NAME.schedule]]`: other limits at certain hours; and limits that contradict one another."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any
from zoneinfo import ZoneInfo

from batchyard.configuration.faults import fault, listed, nearest
from batchyard.settings import DAYS, BudgetSettings, PoolSettings, ScheduleSettings

KEYS = ("days", "from", "to", "timezone", "min", "max")
DAY_MINUTES = 24 * 60
_CLOCK = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")


def schedules(value: Any, *, name: str, origin: str, faults: list[str]) -> tuple[ScheduleSettings, ...]:
    """What a pool's `schedule` says, by the setting's dotted name; those at fault are left out."""
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        faults.append(fault(name, value=value, origin=origin, allowed=f"tables: [[{name}]]"))
        return ()
    made = [_schedule(table, name=f"{name}[{n}]", origin=origin, faults=faults) for n, table in enumerate(value, 1)]
    return tuple(one for one in made if one is not None)


def _schedule(table: Mapping[str, Any], *, name: str, origin: str, faults: list[str]) -> ScheduleSettings | None:
    found = len(faults)

    def refuse(key: str, allowed: str) -> None:
        faults.append(fault(f"{name}.{key}", value=table[key], origin=origin, allowed=allowed))

    faults += [
        f"{name}.{key} ({origin}) is not a setting{nearest(key, KEYS)} (known: {listed(KEYS)})"
        for key in table
        if key not in KEYS
    ]
    faults += [
        f'{name}.{key} is missing: a time of the day, such as "08:00"' for key in ("from", "to") if key not in table
    ]
    days = table.get("days", list(DAYS))
    if not isinstance(days, list) or not days or not set(map(str, days)) <= set(DAYS):
        refuse("days", f"a list of {listed(DAYS)}")
    clock = {key: _minutes(table[key]) for key in ("from", "to") if key in table}
    for key, minutes in clock.items():
        if minutes is None or (key == "from" and minutes == DAY_MINUTES):
            refuse(key, 'a time of the day as "HH:MM"' + ('; "24:00" ends with the day' if key == "to" else ""))
    if len(clock) == 2 and clock["from"] == clock["to"]:
        refuse("to", "another time than from")
    zone = table.get("timezone", "UTC")
    if not _is_zone(zone):
        refuse("timezone", 'a time zone of the IANA database, such as "Europe/Berlin"')
    for key in ("min", "max"):
        if key in table and (type(table[key]) is not int or table[key] < 0):
            refuse(key, "a whole number from 0 on")
    if "min" not in table and "max" not in table:
        faults.append(f"{name} ({origin}) changes nothing: give it min or max")
    if len(faults) > found:
        return None
    start, end = clock["from"], clock["to"]
    assert start is not None
    assert end is not None
    return ScheduleSettings(
        days=tuple(days), from_minute=start, to_minute=end, timezone=zone, min=table.get("min"), max=table.get("max")
    )


def _minutes(value: Any) -> int | None:
    """Since midnight; None where it is no time of the day."""
    if isinstance(value, dt.time):
        return value.hour * 60 + value.minute
    if value == "24:00":
        return DAY_MINUTES
    match = _CLOCK.fullmatch(value) if isinstance(value, str) else None
    return None if match is None else int(match[1]) * 60 + int(match[2])


def _is_zone(value: Any) -> bool:
    try:
        ZoneInfo(value)
    except (TypeError, ValueError, OSError, KeyError):
        return False
    return True


def contradictions(pools: Sequence[PoolSettings], budget: BudgetSettings) -> Iterator[str]:
    """What no scaler could obey."""
    for pool in pools:
        yield from _of_pool(pool)
    per_hour, per_month = budget.per_hour, budget.per_month
    if per_hour is None and per_month is None:
        return
    if per_hour is not None and per_month is not None and per_hour > per_month:
        yield f"budget.per_hour = {per_hour:g}: must be at most budget.per_month, which is {per_month:g}"
    unpriced = [pool.name for pool in pools if pool.price_per_hour is None]
    if unpriced:
        yield f"budget: to know what is spent, price_per_hour is needed of every pool; missing of {listed(unpriced)}"
    least = sum(pool.min * (pool.price_per_hour or 0.0) for pool in pools)
    if per_hour is not None and least > per_hour:
        yield (
            f"budget.per_hour = {per_hour:g}: must be at least {least:g}, what the pools' min costs in an hour; "
            "lower a min, or raise the budget"
        )


def _of_pool(pool: PoolSettings) -> Iterator[str]:
    if len(set(pool.zones)) < len(pool.zones):
        yield f"pools.{pool.name}.zones names a zone twice: {listed(pool.zones)}"
    for number, one in enumerate(pool.schedule, 1):
        low = pool.min if one.min is None else one.min
        high = pool.max if one.max is None else one.max
        if low > high:
            yield (
                f"pools.{pool.name}.schedule[{number}]: min {low} is above max {high} in these hours; "
                "what a schedule leaves out is as the pool says"
            )
    for (first, one), (second, other) in combinations(enumerate(pool.schedule, 1), 2):
        if one.timezone == other.timezone and not set(_hours(one)).isdisjoint(_hours(other)):
            yield f"pools.{pool.name}.schedule: {first} and {second} overlap, so that it is not said which limits hold"


def _hours(schedule: ScheduleSettings) -> Iterator[int]:
    """Minutes of the week in which it holds."""
    length = (schedule.to_minute - schedule.from_minute) % DAY_MINUTES or DAY_MINUTES
    for day in schedule.days:
        start = DAYS.index(day) * DAY_MINUTES + schedule.from_minute
        for minute in range(start, start + length):
            yield minute % (7 * DAY_MINUTES)
