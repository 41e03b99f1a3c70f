"""Readers that deserve statements of their own: the fronts of the lines, and the results of a bulk."""

from __future__ import annotations

import time
from collections import namedtuple
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection

from batchyard.jobs import State
from batchyard.sharing import Computed
from batchyard.store.base import Candidate, JobView, ResultRow
from batchyard.store.computations import computed
from batchyard.store.order import Key, LineKey, Standing
from batchyard.store.postgres.arrays import byteas, int8s
from batchyard.store.postgres.floors import Floors
from batchyard.store.postgres.session import Session, int8
from batchyard.store.postgres.statement import Statement
from batchyard.store.tables import jobs
from batchyard.store.views import ERROR, job_view

# Rows are compared as wholes: only the index of the lines offers that order, so no statistics can make the planner walk
# through all jobs by id instead.
FRONTS = Statement("""
SELECT l.ordinal, j.id, j.cost_estimate, j.start_by, j.ticketed_at
FROM unnest(%(tenants)s, %(priorities)s, %(bounds)s, %(limits)s)
    WITH ORDINALITY AS l(tenant_id, priority, bound, most, ordinal)
CROSS JOIN LATERAL (
    SELECT id, cost_estimate, start_by, ticketed_at FROM jobs
    WHERE state = 0
        AND (queue_id, tenant_id, priority, id) > (%(queue)s::int, l.tenant_id::int, l.priority::smallint, l.bound)
        AND (queue_id, tenant_id, priority, id)
            <= (%(queue)s::int, l.tenant_id::int, l.priority::smallint, 9223372036854775807)
    ORDER BY queue_id, tenant_id, priority, id LIMIT l.most
) j
ORDER BY l.ordinal, j.id""")
"""For each line the jobs after a bound, so many at the most."""

OLDEST = Statement("""
SELECT l.ordinal, j.id, j.created_at
FROM unnest(%(tenants)s, %(priorities)s, %(floors)s) WITH ORDINALITY AS l(tenant_id, priority, floor, ordinal)
CROSS JOIN LATERAL (
    SELECT id, created_at FROM jobs
    WHERE state = 0
        AND (queue_id, tenant_id, priority, id) > (%(queue)s::int, l.tenant_id::int, l.priority::smallint, l.floor)
        AND (queue_id, tenant_id, priority, id)
            <= (%(queue)s::int, l.tenant_id::int, l.priority::smallint, 9223372036854775807)
    ORDER BY queue_id, tenant_id, priority, id LIMIT 1
) j""")
"""The first job of each line, and when it was created."""

STRAGGLERS = Statement("""
SELECT l.ordinal, j.id
FROM unnest(%(tenants)s, %(priorities)s, %(floors)s, %(bounds)s, %(limits)s)
    WITH ORDINALITY AS l(tenant_id, priority, floor, bound, most, ordinal)
CROSS JOIN LATERAL (
    SELECT id FROM jobs
    WHERE state = 0
        AND (queue_id, tenant_id, priority, id) < (%(queue)s::int, l.tenant_id::int, l.priority::smallint, l.bound)
        AND (queue_id, tenant_id, priority, id) > (%(queue)s::int, l.tenant_id::int, l.priority::smallint, l.floor)
    ORDER BY queue_id, tenant_id, priority, id LIMIT l.most
) j
ORDER BY j.id""")
"""For each line the jobs before a bound, so many at the most."""

STANDING = Statement("""
SELECT j.queue_id, j.tenant_id, j.priority, b.ahead,
    CASE WHEN b.ahead < %(limit)s THEN coalesce(b.lowest, j.id) ELSE (
        SELECT id FROM jobs
        WHERE state = 0 AND (queue_id, tenant_id, priority, id) > (j.queue_id, j.tenant_id, j.priority, f.floor)
        ORDER BY queue_id, tenant_id, priority, id LIMIT 1
    ) END,
    CASE WHEN b.ahead < %(limit)s THEN j.id ELSE (
        SELECT id FROM jobs
        WHERE state = 0
            AND (queue_id, tenant_id, priority, id) <= (j.queue_id, j.tenant_id, j.priority, 9223372036854775807)
        ORDER BY queue_id DESC, tenant_id DESC, priority DESC, id DESC LIMIT 1
    ) END,
    f.floor
FROM jobs j CROSS JOIN LATERAL (
    SELECT coalesce(max(l.floor), 0) AS floor
    FROM unnest(%(queues)s, %(tenants)s, %(priorities)s, %(floors)s) AS l(queue_id, tenant_id, priority, floor)
    WHERE l.queue_id = j.queue_id AND l.tenant_id = j.tenant_id AND l.priority = j.priority
) f CROSS JOIN LATERAL (
    SELECT count(*) AS ahead, min(id) AS lowest FROM (
        SELECT id FROM jobs
        WHERE state = 0
            AND (queue_id, tenant_id, priority, id) < (j.queue_id, j.tenant_id, j.priority, j.id)
            AND (queue_id, tenant_id, priority, id) > (j.queue_id, j.tenant_id, j.priority, f.floor)
        ORDER BY queue_id DESC, tenant_id DESC, priority DESC, id DESC LIMIT %(limit)s
    ) c
) b
WHERE j.id = %(id)s AND j.state + 0 = 0""")
"""A queued job's line, the jobs before it in its line, the line's first, where those are many its last, and from where
on it was looked at."""

RESULTS = Statement("""
SELECT g.seq, j.id, j.bulk_index, j.state, i.custom_id, r.format, r.body
FROM unnest(%(ids)s, %(seqs)s) AS g(id, seq) JOIN jobs j ON j.id = g.id JOIN job_inputs i ON i.job_id = g.id
LEFT JOIN job_results r ON r.job_id = g.id""")
"""The rows of finished jobs."""

_LINE_COLUMNS = ("queues", "tenants", "priorities")
_INPUT_COLUMNS = ("custom_id", "labels", "redrive_of")
_RESULT_COLUMNS = ("cost", "device_us", "format", "computed_by")
_record: Any = namedtuple  # the type checker wants to see the names, which the table knows
_view_row = _record("_ViewRow", [*jobs.c.keys(), *_INPUT_COLUMNS, *_RESULT_COLUMNS, "body"])
"""A row that `job_view` reads."""


@cache
def view(*, results: bool) -> Statement:
    """Jobs of a tenant by id, as rows of `_view_row`; with the bodies of errors alone or of all results."""
    named = [("j", jobs.c.keys()), ("i", _INPUT_COLUMNS), ("r", _RESULT_COLUMNS)]
    columns = ", ".join(f"{table}.{name}" for table, names in named for name in names)
    body = "r.body" if results else f"CASE WHEN r.format = {ERROR} THEN r.body END"
    return Statement(f"""
        SELECT {columns}, {body} FROM unnest(%(ids)s) AS g(id) JOIN jobs j ON j.id = g.id
        JOIN job_inputs i ON i.job_id = j.id LEFT JOIN job_results r ON r.job_id = j.id
        WHERE j.tenant_id + 0 = %(tenant)s""")


COMPUTED = Statement("""
SELECT c.key, j.id, j.tenant_id, r.format, r.cost, r.body
FROM unnest(%(keys)s) AS w(key) JOIN computations c ON c.key = w.key JOIN jobs j ON j.id = c.job_id
JOIN job_results r ON r.job_id = j.id
WHERE j.state + 0 = 3 AND j.finished_at > %(after)s""")
"""What jobs computed that finished after then."""

UNFINISHED = Statement("""
SELECT j.id FROM unnest(%(ids)s) AS g(id) JOIN jobs j ON j.id = g.id WHERE j.state + 0 < 3""")
"""Which jobs are there and not terminal."""

_STATES = tuple(State)


class Reading(Session):
    """Overrides of shared readers."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._floors = Floors(time.monotonic)

    def _jobs(self, ids: Sequence[int], *, tenant_id: int, results: bool) -> list[JobView]:
        if not ids:
            return []
        wanted = int8s(dict.fromkeys(ids))
        rows = self._run(view(results=results), ids=wanted, tenant=int8(tenant_id))
        return [job_view(_view_row._make(row)) for row in rows]

    def _computed(self, keys: Sequence[bytes], *, after_ms: int) -> dict[bytes, Computed]:
        rows = self._run(COMPUTED, keys=byteas(keys), after=int8(after_ms))
        return {key: computed(*row) for key, *row in rows}

    def finished_among(self, ids: Sequence[int]) -> list[int]:
        """See `JobStore.finished_among`."""
        if not ids:
            return []
        unfinished = {job_id for (job_id,) in self._run(UNFINISHED, ids=int8s(ids))}
        return [job_id for job_id in ids if job_id not in unfinished]

    def stragglers(self, queue_id: int, *, below: Mapping[tuple[int, int], int], limit: int) -> list[int]:
        """See `JobStore.stragglers`."""
        keys = [LineKey(tenant_id, priority, bound, limit) for (tenant_id, priority), bound in below.items()]
        if not keys:
            return []
        floors = self._floors_of(queue_id, keys)
        began = time.monotonic()
        found = self._run(STRAGGLERS, floors=int8s(floors), **_lines(queue_id, keys))
        ends = {**{ordinal: key.bound for ordinal, key in enumerate(keys, 1)}, **_firsts(found)}
        self._learn(queue_id, keys, floors, ends, began=began)
        return [job_id for _, job_id in found]

    def _fronts(self, connection: Connection, queue_id: int, keys: Sequence[LineKey]) -> list[list[Candidate]]:
        fronts: list[list[Candidate]] = [[] for _ in keys]
        if not keys:
            return fronts
        # Whoever has been past the beginning of a line looks behind that.
        floors = [max(key.bound, floor) for key, floor in zip(keys, self._floors_of(queue_id, keys), strict=True)]
        began = time.monotonic()
        raised = [key._replace(bound=floor) for key, floor in zip(keys, floors, strict=True)]
        found = self._run(FRONTS, **_lines(queue_id, raised))
        self._learn(queue_id, keys, floors, _firsts(found), began=began)
        for ordinal, *candidate in found:
            fronts[ordinal - 1].append(Candidate(*candidate))
        return fronts

    def _oldest_ms(self, connection: Connection, queue_id: int, lines: Sequence[Key]) -> int | None:
        keys = [LineKey(tenant_id, priority, 0, 1) for tenant_id, priority in lines]
        floors = self._floors_of(queue_id, keys)
        began = time.monotonic()
        columns = _lines(queue_id, keys)
        asked = {name: columns[name] for name in ("queue", "tenants", "priorities")}
        found = self._run(OLDEST, floors=int8s(floors), **asked)
        self._learn(queue_id, keys, floors, _firsts(found), began=began)
        return min((created for _, _, created in found), default=None)

    def _floors_of(self, queue_id: int, keys: Sequence[LineKey]) -> list[int]:
        return [self._floors.of((queue_id, key.tenant_id, key.priority)) for key in keys]

    def _learn(
        self, queue_id: int, keys: Sequence[LineKey], after: Sequence[int], firsts: Mapping[int, int], *, began: float
    ) -> None:
        """`firsts`: by ordinal the first id that a look after those ids found, or up to which it found none."""
        seconds = time.monotonic() - began
        for ordinal, first in firsts.items():
            key = keys[ordinal - 1]
            line = (queue_id, key.tenant_id, key.priority)
            self._floors.learn(line, after=after[ordinal - 1], none_to=first - 1, seconds=seconds)

    def _standing(self, connection: Connection, job_id: int, *, limit: int) -> Standing | None:
        known = self._floors.known()
        lines = {name: int8s([line[place] for line in known]) for place, name in enumerate(_LINE_COLUMNS)}
        began = time.monotonic()
        found = self._run(STANDING, id=int8(job_id), limit=int8(limit), floors=int8s(known.values()), **lines)
        for *standing, floor in found:
            stands = Standing(*standing)
            line = (stands.queue_id, stands.tenant_id, stands.priority)
            seconds = time.monotonic() - began
            self._floors.learn(line, after=floor, none_to=min(stands.first_id, job_id) - 1, seconds=seconds)
            return stands
        return None

    def _results(self, connection: Connection, seq_of: dict[int, int]) -> list[ResultRow]:
        rows = self._run(RESULTS, ids=int8s(seq_of), seqs=int8s(seq_of.values()))
        by_id = {row[1]: row for row in rows}
        return [
            ResultRow(seq, job_id, index or 0, _STATES[state], custom_id, format_, body)
            for seq, job_id, index, state, custom_id, format_, body in (by_id[one] for one in seq_of if one in by_id)
        ]


def _firsts(found: Sequence[tuple[Any, ...]]) -> dict[int, int]:
    """By the ordinal of each line the least id of rows that are in order."""
    return {row[0]: row[1] for row in reversed(found)}


def _lines(queue_id: int, keys: Sequence[LineKey]) -> dict[str, object]:
    return {
        "queue": int8(queue_id),
        "tenants": int8s([key.tenant_id for key in keys]),
        "priorities": int8s([key.priority for key in keys]),
        "bounds": int8s([key.bound for key in keys]),
        "limits": int8s([key.limit for key in keys]),
    }
