"""Spot capacity over time, from CSV files of three shapes, told apart by their first line:

    time_ms,add|remove,node      nodes that come and go
    date,time,running            how many there are. The rows of a change may run three minutes ahead of the next one
    time,running                 how many there are; time in seconds, or in hours where it has a decimal point

A heading may stand before them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

from batchyard.trace_rows import Faults, Row, rows_of, unix_seconds

AHEAD_SECONDS = 180.0
"""So far the rows of a log of counts may run ahead of the next."""
EXPECTED = "time_ms,add|remove,node or date,time,running or time,running"

Change = tuple[float, int]
"""When, in seconds, and how many nodes come; negative: go."""


@dataclass(frozen=True, kw_only=True)
class SpotTrace:
    """One zone's spot capacity: how many nodes it gains or loses, and when. Begins anew when it is over."""

    zone: str
    changes: Sequence[Change]
    """Ascending, from 0. The running sum of the nodes is never negative."""
    seconds: float
    """Length of a round, an hour at the least. After its end it begins anew, from the nodes that there were then."""

    def counts(self) -> list[int]:
        """Nodes there are from each change on."""
        return list(accumulate(nodes for _, nodes in self.changes))

    def change(self, index: int) -> Change:
        """When the change of this number comes, all rounds counted, and how many nodes it brings."""
        rounds, place = divmod(index, len(self.changes))
        at, nodes = self.changes[place]
        if rounds and place == 0:
            nodes -= self.counts()[-1]
        return rounds * self.seconds + at, nodes


Spot = Mapping[str, SpotTrace]
"""By zone."""


def read_spot(path: Path, *, zone: str | None = None) -> SpotTrace:
    """One zone's capacity, named as the file where it is not said. Raises InvalidTrace with all that is wrong."""
    rows = list(rows_of(path))
    if rows and not any(character.isdigit() for field in rows[0][1] for character in field):
        del rows[0]  # a heading
    if not rows:
        faults = Faults(path)
        faults.add(1, "the file has no row", EXPECTED)
        faults.end(rows=0)
    line, first = rows[0][0], [field.strip() for field in rows[0][1]]
    shapes: dict[bool, Callable[[Faults, Sequence[Row]], list[Change]]] = {
        len(first) == 2: _read_counts,
        len(first) == 3 and first[1] in {"add", "remove"}: _read_nodes,
        len(first) == 3 and "-" in first[0][1:]: _read_dated_counts,
    }
    faults = Faults(path)
    if True not in shapes:
        faults.add(line, ",".join(first), EXPECTED)
        faults.end(rows=0)
    changes = shapes[True](faults, rows)
    begin = changes[0][0]
    changes = [(at - begin, nodes) for at, nodes in changes]
    return SpotTrace(zone=zone or path.name.split(".")[0], changes=changes, seconds=max(3600.0, changes[-1][0]))


def _read_nodes(faults: Faults, rows: Sequence[Row]) -> list[Change]:
    there: set[str] = set()
    changes: list[Change] = []
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


def _read_dated_counts(faults: Faults, rows: Sequence[Row]) -> list[Change]:
    counts: list[Change] = []
    for line, fields in rows:
        at = unix_seconds(f"{fields[0].strip()} {fields[1].strip()}") if len(fields) == 3 else None
        running = faults.number(line, "running", fields[2], least=0.0) if at is not None else None
        if at is None:
            faults.add(line, ",".join(fields), "date,time,running, such as 2021-12-11,11:11:30,55")
        if at is None or running is None:
            continue
        if counts and at < counts[-1][0] - AHEAD_SECONDS:
            faults.add(line, f"the time is {','.join(fields[:2])}", "the line before's or later: rows ascend by time")
        counts.append((max(at, counts[-1][0]) if counts else at, int(running)))
    faults.end(rows=len(counts))
    return _changes(counts)


def _read_counts(faults: Faults, rows: Sequence[Row]) -> list[Change]:
    counts: list[Change] = []
    unit = 3600.0 if any("." in fields[0] for _, fields in rows) else 1.0
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


def _changes(counts: Sequence[Change]) -> list[Change]:
    """From how many there are to how many come and go; the last row tells how long it lasted."""
    changes = [counts[0]]
    changes += [(at, running - before) for (_, before), (at, running) in pairwise(counts) if running != before]
    if changes[-1][0] < counts[-1][0]:
        changes.append((counts[-1][0], 0))
    return changes
