"""Traces from CSV files, plain or gzipped; every fault with its line number, and what was expected there.

Three shapes of jobs, told apart by their heading:

    arrive_seconds,work_seconds[,deadline_seconds][,model][,tolerant]   a job a line
    TIMESTAMP,…                                                         a request a line, at a date and time
    model,t_seconds,requests_per_second,…                               requests a second, by model, in equal steps

and three of spot capacity, told apart by their first line, without headings:

    time_ms,add|remove,node      nodes that come and go
    date,time,running            how many there are. The rows of a change may run three minutes ahead of the next one
    time,running                 how many there are; time in seconds, or in hours where it has a decimal point
"""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np

from batchyard.errors import InvalidTrace
from batchyard_scaler.simulator.trace import Floats, SpotTrace, Trace

SHOWN_FAULTS = 10
AHEAD_SECONDS = 180.0
"""So far the rows of a log of counts may run ahead of the next."""

Row = tuple[int, Sequence[str]]
"""Line number and fields."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Requests a second by model, in equal steps from 0."""

    name: str
    step_seconds: float
    by_model: dict[str, Floats]


def read_jobs(path: Path) -> Trace | Rates:
    """Jobs or rates. Of requests at dates and times only the arrivals are known: their work is `nan`, without deadline.

    Raises InvalidTrace with all that is wrong.
    """
    rows = _rows(path)
    line, heading = next(rows, (1, ()))
    names = [name.strip().lower() for name in heading]
    if {"arrive_seconds", "work_seconds"} <= set(names):
        return _read_jobs(path, names, rows)
    if names and names[0] == "timestamp":
        return _read_requests(path, rows)
    if names[:3] == ["model", "t_seconds", "requests_per_second"]:
        return _read_rates(path, rows)
    given = ",".join(heading) or "missing"
    expected = "arrive_seconds,work_seconds,… or TIMESTAMP,… or model,t_seconds,requests_per_second,…"
    raise InvalidTrace(path.name, [f"line {line}: the heading is {given}; expected {expected}"])


def read_spot(path: Path, *, zone: str | None = None) -> SpotTrace:
    """One zone's capacity. Raises InvalidTrace with all that is wrong."""
    rows = list(_rows(path))
    if not rows:
        raise InvalidTrace(
            path.name, ["line 1: the file is empty; expected time_ms,add|remove,node or date,time,running"]
        )
    first = [field.strip() for field in rows[0][1]]
    shapes: dict[bool, Callable[[Path, Sequence[Row]], list[tuple[float, int]]]] = {
        len(first) == 2: _read_counts,
        len(first) == 3 and "-" in first[0]: _read_dated_counts,
        len(first) == 3 and first[1] in {"add", "remove"}: _read_nodes,
    }
    if True not in shapes:
        expected = "time_ms,add|remove,node or date,time,running or time,running"
        raise InvalidTrace(path.name, [f"line 1: {','.join(first)}; expected {expected}"])
    changes = shapes[True](path, rows)
    begin = changes[0][0]
    at = np.array([at - begin for at, _ in changes])
    return SpotTrace(
        zone=zone or path.name.split(".")[0],
        at_seconds=at,
        changes=np.array([change for _, change in changes], dtype=np.int64),
        seconds=max(3600.0, float(at[-1])),
    )


# --- jobs -------------------------------------------------------------------------------------------------------------


def _read_jobs(path: Path, names: Sequence[str], rows: Iterator[Row]) -> Trace:
    faults = _Faults(path)
    place = {name: index for index, name in enumerate(names)}
    found: list[tuple[float, float, float, str, bool]] = []
    for line, fields in rows:
        if len(fields) != len(names):
            faults.add(line, f"{len(fields)} fields", f"{len(names)}, as the heading has")
            continue

        def field(name: str, default: str = "", *, fields: Sequence[str] = fields) -> str:
            return fields[place[name]].strip() or default if name in place else default

        arrive = faults.number(line, "arrive_seconds", field("arrive_seconds"), least=0.0)
        work = faults.number(line, "work_seconds", field("work_seconds"), least=1e-9)
        deadline = faults.number(line, "deadline_seconds", field("deadline_seconds", "inf"), least=0.0)
        tolerant = field("tolerant", "1").lower()
        if tolerant not in _TRUTH:
            faults.add(line, f"tolerant is {tolerant}", f"one of {', '.join(_TRUTH)}")
            continue
        if arrive is None or work is None or deadline is None:
            continue
        if found and arrive < found[-1][0]:
            faults.add(line, f"arrives at {arrive:g} s", f"{found[-1][0]:g} s or later: rows ascend by arrive_seconds")
        found.append((arrive, work, deadline, field("model", "model@1"), _TRUTH[tolerant]))
    faults.end(rows=len(found))
    models = sorted({row[3] for row in found})
    arrive_at = np.array([row[0] for row in found])
    return Trace(
        name=path.name.split(".")[0],
        arrive_at=arrive_at,
        work_seconds=np.array([row[1] for row in found]),
        due_at=arrive_at + np.array([row[2] for row in found]),
        model=np.array([models.index(row[3]) for row in found]),
        is_tolerant=np.array([row[4] for row in found]),
        models=tuple(models),
        seconds=float(arrive_at[-1]) + 1.0,
    )


_TRUTH = {"1": True, "0": False, "true": True, "false": False}


def _read_requests(path: Path, rows: Iterator[Row]) -> Trace:
    faults = _Faults(path)
    times: list[float] = []
    for line, fields in rows:
        at = _unix_seconds(fields[0])
        if at is None:
            faults.add(line, f"the time is {fields[0]!r}", "a date and time such as 2023-11-16 18:17:03.979")
        elif times and at < times[-1]:
            faults.add(line, f"the time is {fields[0]}", "the line before's or later: rows ascend by time")
        else:
            times.append(at)
    faults.end(rows=len(times))
    arrive_at = np.array(times) - times[0]
    count = len(times)
    return Trace(
        name=path.name.split(".")[0],
        arrive_at=arrive_at,
        work_seconds=np.full(count, math.nan),
        due_at=np.full(count, math.inf),
        model=np.zeros(count, dtype=np.int64),
        is_tolerant=np.ones(count, dtype=bool),
        models=("model@1",),
        seconds=float(arrive_at[-1]) + 1.0,
        begins_at_seconds=times[0],
    )


def _read_rates(path: Path, rows: Iterator[Row]) -> Rates:
    faults = _Faults(path)
    by_model: dict[str, list[tuple[int, float, float]]] = {}
    for line, fields in rows:
        if len(fields) < 3:
            faults.add(line, f"{len(fields)} fields", "three or more: model,t_seconds,requests_per_second")
            continue
        at = faults.number(line, "t_seconds", fields[1], least=0.0)
        rate = faults.number(line, "requests_per_second", fields[2], least=0.0)
        if at is not None and rate is not None:
            by_model.setdefault(fields[0].strip(), []).append((line, at, rate))
    faults.end(rows=sum(map(len, by_model.values())))
    first = next(iter(by_model.values()))
    step = first[1][1] - first[0][1] if len(first) > 1 else 600.0
    for model, steps in by_model.items():
        for number, (line, at, _) in enumerate(steps):
            expected = steps[0][1] + number * step
            if step <= 0 or abs(at - expected) > 1e-6:
                faults.add(line, f"t_seconds of {model} is {at:g}", f"{expected:g}: one row a step, without gaps")
                break
    faults.end(rows=1)
    return Rates(
        name=path.name.split(".")[0],
        step_seconds=step,
        by_model={model: np.array([rate for *_, rate in steps]) for model, steps in by_model.items()},
    )


# --- spot capacity ----------------------------------------------------------------------------------------------------


def _read_nodes(path: Path, rows: Sequence[Row]) -> list[tuple[float, int]]:
    faults = _Faults(path)
    there: set[str] = set()
    changes: list[tuple[float, int]] = []
    for line, fields in rows:
        if len(fields) != 3 or fields[1].strip() not in {"add", "remove"}:
            faults.add(line, ",".join(fields), "time_ms,add|remove,node")
            continue
        at = faults.number(line, "time_ms", fields[0], least=0.0)
        if at is None:
            continue
        if changes and at / 1000 < changes[-1][0]:
            faults.add(line, f"time_ms is {at:g}", f"{changes[-1][0] * 1000:g} or later: rows ascend by time")
        node, is_added = fields[2].strip(), fields[1].strip() == "add"
        if is_added == (node in there):
            expected = "one that is not there" if is_added else "one that was added before"
            faults.add(line, f"{fields[1]} of {node}", expected)
        (there.add if is_added else there.discard)(node)
        changes.append((at / 1000, 1 if is_added else -1))
    faults.end(rows=len(changes))
    return changes


def _read_dated_counts(path: Path, rows: Sequence[Row]) -> list[tuple[float, int]]:
    faults = _Faults(path)
    counts: list[tuple[float, int]] = []
    for line, fields in rows:
        at = _unix_seconds(f"{fields[0].strip()} {fields[1].strip()}") if len(fields) == 3 else None
        running = faults.number(line, "running", fields[2], least=0.0) if len(fields) == 3 else None
        if at is None or running is None:
            faults.add(line, ",".join(fields), "date,time,running, such as 2021-12-11,11:11:30,55")
            continue
        if counts and at < counts[-1][0] - AHEAD_SECONDS:
            faults.add(line, f"the time is {','.join(fields[:2])}", "the line before's or later: rows ascend by time")
        counts.append((max(at, counts[-1][0]) if counts else at, int(running)))
    faults.end(rows=len(counts))
    return _changes(counts)


def _read_counts(path: Path, rows: Sequence[Row]) -> list[tuple[float, int]]:
    faults = _Faults(path)
    unit = 3600.0 if any("." in fields[0] for _, fields in rows if fields) else 1.0
    counts: list[tuple[float, int]] = []
    for line, fields in rows:
        if len(fields) != 2:
            faults.add(line, ",".join(fields), "time,running")
            continue
        at = faults.number(line, "time", fields[0], least=0.0)
        running = faults.number(line, "running", fields[1], least=0.0)
        if at is None or running is None:
            continue
        if counts and at * unit < counts[-1][0]:
            faults.add(line, f"time is {at:g}", f"{counts[-1][0] / unit:g} or later: rows ascend by time")
        counts.append((at * unit, int(running)))
    faults.end(rows=len(counts))
    return _changes(counts)


def _changes(counts: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    """From how many there are to how many come and go; the last row tells how long it lasted."""
    changes = [counts[0]]
    changes += [(at, running - before) for (_, before), (at, running) in pairwise(counts) if running != before]
    if changes[-1][0] < counts[-1][0]:
        changes.append((counts[-1][0], 0))
    return changes


# --- lines ------------------------------------------------------------------------------------------------------------


class _Faults:
    """Gathers what is wrong with a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._faults: list[str] = []

    def add(self, line: int, given: str, expected: str) -> None:
        self._faults.append(f"line {line}: {given}; expected {expected}")

    def number(self, line: int, name: str, text: str, *, least: float) -> float | None:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if value >= least:
            return value
        self.add(line, f"{name} is {text.strip() or 'empty'}", f"a number of {least:g} or more")
        return None

    def end(self, *, rows: int) -> None:
        """Raises InvalidTrace where something was wrong, or there were no rows."""
        if not self._faults and not rows:
            self._faults.append("line 2: the file ends; expected a row")
        if self._faults:
            more = len(self._faults) - SHOWN_FAULTS
            shown = self._faults[:SHOWN_FAULTS] + ([f"and {more:,} more"] if more > 0 else [])
            raise InvalidTrace(self._path.name, shown)


def _rows(path: Path) -> Iterator[Row]:
    """Lines that are not empty, as fields."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            for fields in reader:
                if fields:
                    yield reader.line_num, fields
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidTrace(path.name, [f"cannot be read as CSV: {error}"]) from error


def _unix_seconds(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
