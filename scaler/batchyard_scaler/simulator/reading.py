"""Traces of jobs from CSV files; every fault with its line number, and what was expected there.

Two shapes, told apart by their headings: a job a line, and requests a second by model, in equal steps:

    arrive[,work][,deadline][,model][,tolerant]
    model,t_seconds,requests_per_second,…

Columns of jobs are found by several names each, in any order, and others are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from batchyard.errors import InvalidTrace
from batchyard.trace_rows import Faults, Row, rows_of, unix_seconds
from batchyard_scaler.simulator.trace import Floats, Trace

COLUMNS: Mapping[str, Sequence[str]] = {
    "arrive": ("arrive", "arrival", "arrival_time", "submit", "submit_time", "submitted_at", "created_at", "timestamp",
               "time", "t"),
    "work": ("work", "run", "run_time", "runtime", "duration", "execution_time", "service_time"),
    "deadline": ("deadline", "slack"),
    "model": ("model", "model_name"),
    "tolerant": ("tolerant", "preemptible"),
}  # fmt: skip
"""What a job's columns may be called, with or without a unit behind: `arrival_ms`, `work_seconds`."""
UNITS = {"seconds": 1.0, "sec": 1.0, "s": 1.0, "milliseconds": 1e-3, "millis": 1e-3, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
RATES = ("model", "t_seconds", "requests_per_second")
UNIX_SECONDS = 1e8, 1e10
"""Numbers between them (the years 1973 and 2286) are Unix times in seconds; above, in milliseconds or finer."""
TRUTH = {"1": True, "0": False, "true": True, "false": False, "yes": True, "no": False}


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Requests a second by model, in equal steps from 0."""

    name: str
    step_seconds: float
    by_model: dict[str, Floats]


def read_jobs(path: Path, *, named: Mapping[str, str] | None = None) -> Trace | Rates:
    """Jobs or rates. Without a column of work it is `nan`, without one of deadlines there are none.

    `named`: of COLUMNS, what this file calls them. Raises InvalidTrace with all that is wrong.
    """
    rows = rows_of(path)
    _, heading = next(rows, (1, ()))
    headings = [_plain(name) for name in heading]
    if set(RATES) <= set(headings):
        return _read_rates(path, headings, rows)
    columns = _columns(headings, named or {})
    missing = [heading for key, heading in (named or {}).items() if key not in columns]
    if missing or "arrive" not in columns:
        wanted = "a column " + ", ".join(missing) if missing else (
            "a column of arrivals, named arrive_seconds, timestamp or the like (--column arrive=NAME tells another "
            f"name), or {','.join(RATES)}"
        )  # fmt: skip
        raise InvalidTrace(path.name, [f"line 1: the heading is {','.join(heading) or 'missing'}; expected {wanted}"])
    return _read_jobs(path, columns, rows, width=len(heading))


def _plain(heading: str) -> str:
    return heading.strip().lower().replace(" ", "_")


@dataclass(frozen=True, kw_only=True)
class _Column:
    index: int
    heading: str
    unit: float


def _columns(headings: Sequence[str], named: Mapping[str, str]) -> dict[str, _Column]:
    """Those that the file has."""
    found = {}
    for key, names in COLUMNS.items():
        wanted = (_plain(named[key]),) if key in named else names
        for name in wanted:
            for index, heading in enumerate(headings):
                base, _, unit = heading.rpartition("_")
                if key not in found and (heading == name or (base == name and unit in UNITS)):
                    found[key] = _Column(index=index, heading=heading, unit=UNITS.get(unit, 1.0))
    return found


class _Clock:
    """Reads when jobs arrive: seconds since some beginning, Unix times in any unit, or dates and times; as the first
    row has them."""

    def __init__(self, column: _Column) -> None:
        self._unit = column.unit
        self._has_dates: bool | None = None
        self.is_absolute = False

    def read(self, text: str) -> float | None:
        """In seconds; None where it is no time of the first row's kind."""
        number = _number(text)
        if self._has_dates is None and (number is not None or unix_seconds(text) is not None):
            self._has_dates = number is None
            least, most = UNIX_SECONDS
            while number is not None and number * self._unit > most:
                self._unit /= 1000
            self.is_absolute = number is None or number * self._unit > least
        if self._has_dates:
            return unix_seconds(text)
        return None if number is None or number < 0 else number * self._unit

    @property
    def expected(self) -> str:
        if self._has_dates is None:
            return "a number of 0 or more, or a date and time such as 2023-11-16 18:17:03.979"
        kind = "a date and time such as 2023-11-16 18:17:03.979" if self._has_dates else "a number of 0 or more"
        return f"{kind}, as in the rows before"


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _read_jobs(path: Path, columns: Mapping[str, _Column], rows: Iterator[Row], *, width: int) -> Trace:
    faults = Faults(path)
    clock = _Clock(columns["arrive"])
    found: list[tuple[float, float, float, str, bool]] = []

    def number(key: str, line: int, fields: Sequence[str], *, least: float, default: float) -> float | None:
        column = columns.get(key)
        if column is None or (key == "deadline" and not fields[column.index].strip()):
            return default
        value = faults.number(line, column.heading, fields[column.index], least=least)
        return None if value is None else value * column.unit

    def text(key: str, fields: Sequence[str], default: str) -> str:
        return fields[columns[key].index].strip() or default if key in columns else default

    for line, fields in rows:
        if len(fields) != width:
            faults.add(line, f"{len(fields)} fields", f"{width}, as the heading has")
            continue
        told = text("arrive", fields, "empty")
        arrive = clock.read(told)
        if arrive is None:
            faults.add(line, f"{columns['arrive'].heading} is {told}", clock.expected)
        elif found and arrive < found[-1][0]:
            faults.add(line, f"{columns['arrive'].heading} is {told}", "that of the row before or later: rows ascend")
        work = number("work", line, fields, least=1e-9, default=math.nan)
        deadline = number("deadline", line, fields, least=0.0, default=math.inf)
        tolerant = text("tolerant", fields, "1").lower()
        if tolerant not in TRUTH:
            faults.add(line, f"tolerant is {tolerant}", f"one of {', '.join(TRUTH)}")
        elif arrive is not None and work is not None and deadline is not None:
            found.append((arrive, work, deadline, text("model", fields, "model@1"), TRUTH[tolerant]))
    faults.end(rows=len(found))
    return _trace(path.name.split(".")[0], found, is_absolute=clock.is_absolute)


def _trace(name: str, found: Sequence[tuple[float, float, float, str, bool]], *, is_absolute: bool) -> Trace:
    begins_at = found[0][0] if is_absolute else 0.0
    models = sorted({row[3] for row in found})
    place = {model: index for index, model in enumerate(models)}
    arrive_at = np.array([row[0] for row in found]) - begins_at
    return Trace(
        name=name,
        arrive_at=arrive_at,
        work_seconds=np.array([row[1] for row in found]),
        due_at=arrive_at + np.array([row[2] for row in found]),
        model=np.array([place[row[3]] for row in found]),
        is_tolerant=np.array([row[4] for row in found]),
        models=tuple(models),
        seconds=float(arrive_at[-1]) + 1.0,
        begins_at_seconds=begins_at,
    )


def _read_rates(path: Path, headings: Sequence[str], rows: Iterator[Row]) -> Rates:
    faults = Faults(path)
    model_at, time_at, rate_at = (headings.index(name) for name in RATES)
    by_model: dict[str, list[tuple[int, float, float]]] = {}
    for line, fields in rows:
        if len(fields) != len(headings):
            faults.add(line, f"{len(fields)} fields", f"{len(headings)}, as the heading has")
            continue
        at = faults.number(line, "t_seconds", fields[time_at], least=0.0)
        rate = faults.number(line, "requests_per_second", fields[rate_at], least=0.0)
        if at is not None and rate is not None:
            by_model.setdefault(fields[model_at].strip(), []).append((line, at, rate))
    faults.end(rows=sum(map(len, by_model.values())))
    first = next(iter(by_model.values()))
    step = first[1][1] - first[0][1] if len(first) > 1 else 600.0
    if step <= 0:
        faults.add(first[1][0], f"t_seconds is {first[1][1]:g}", f"more than {first[0][1]:g}: rows ascend by time")
        faults.end(rows=1)
    for model, steps in by_model.items():
        for number, (line, at, _) in enumerate(steps):
            expected = steps[0][1] + number * step
            if abs(at - expected) > 1e-6:
                faults.add(line, f"t_seconds of {model} is {at:g}", f"{expected:g}: one row a step, without gaps")
                break
    faults.end(rows=1)
    return Rates(
        name=path.name.split(".")[0],
        step_seconds=step,
        by_model={model: np.array([rate for *_, rate in steps]) for model, steps in by_model.items()},
    )
