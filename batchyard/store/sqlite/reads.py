"""Readers by the driver: one row fetched however many are read, for the reason that `inserts` gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection

from batchyard.jobs import ErrorInfo, State
from batchyard.store.base import Candidate, JobView, ResultRow
from batchyard.store.order import Key, LineKey, Standing
from batchyard.store.shared import SharedStore
from batchyard.store.sqlite.claims import LARGE_BODY, cut
from batchyard.store.sqlite.file import SqliteFile
from batchyard.store.views import ERROR, load_error, load_labels, shown_priority

encode = msgspec.json.encode
decode: Callable[[str | bytes], Any] = msgspec.json.decode

_FRONT = """
SELECT json_array(json_group_array(id), json_group_array(cost_estimate), json_group_array(start_by),
    json_group_array(ticketed_at))
FROM (
    SELECT id, cost_estimate, start_by, ticketed_at FROM jobs
    WHERE state = 0 AND queue_id = ?1 AND tenant_id = ?2 AND priority = ?3 AND id > ?4 ORDER BY id LIMIT ?5
)
"""

_STANDING = """
WITH j AS MATERIALIZED (
    SELECT queue_id, tenant_id, priority, id, (
        SELECT count(*) FROM (
            SELECT 1 FROM jobs l
            WHERE l.state = 0 AND l.queue_id = jobs.queue_id AND l.tenant_id = jobs.tenant_id
                AND l.priority = jobs.priority AND l.id < jobs.id
            ORDER BY l.id DESC LIMIT ?2
        )
    ) AS ahead
    FROM jobs WHERE id = ?1 AND state + 0 = 0
)
SELECT queue_id, tenant_id, priority, ahead,
    CASE WHEN ahead < ?2 THEN id ELSE (
        SELECT min(l.id) FROM jobs l
        WHERE l.state = 0 AND l.queue_id = j.queue_id AND l.tenant_id = j.tenant_id AND l.priority = j.priority
    ) END,
    CASE WHEN ahead < ?2 THEN id ELSE (
        SELECT max(l.id) FROM jobs l
        WHERE l.state = 0 AND l.queue_id = j.queue_id AND l.tenant_id = j.tenant_id AND l.priority = j.priority
    ) END
FROM j
"""

_OLDEST = """
SELECT min((
    SELECT created_at FROM jobs
    WHERE state = 0 AND queue_id = ?1 AND tenant_id = line.value ->> 0 AND priority = line.value ->> 1 AND id > 0
    ORDER BY id LIMIT 1
))
FROM json_each(?2) line
"""

_STRAGGLERS = """
SELECT (
    SELECT json_group_array(id) FROM (
        SELECT id FROM jobs
        WHERE state = 0 AND queue_id = ?1 AND tenant_id = line.value ->> 0 AND priority = line.value ->> 1
            AND id < line.value ->> 2
        ORDER BY id LIMIT ?2
    )
)
FROM json_each(?3) line
"""

_GATHERED = f"CAST(group_concat(body, '') FILTER (WHERE length(body) < {LARGE_BODY}) AS BLOB)"

_RESULTS = f"""
SELECT json_group_array(id), json_group_array(bulk_index), json_group_array(state), json_group_array(custom_id),
    json_group_array(format), json_group_array(length(body)), {_GATHERED}
FROM (
    SELECT j.id, j.bulk_index, j.state, i.custom_id, r.format, r.body
    FROM json_each(?) e CROSS JOIN jobs j ON j.id = e.value CROSS JOIN job_inputs i ON i.job_id = j.id
        LEFT JOIN job_results r ON r.job_id = j.id
)
"""
"""In the order of the ids, which a cross join keeps: sorting would cost a third of it all."""

_FLUSHES = "SELECT seq, job_ids FROM flushes WHERE bulk_id = ? AND seq > ? ORDER BY seq LIMIT ?"

_VIEWS = f"""
SELECT json_group_array(json_array(id, queue_id, state, priority, attempt, failures, crashes, preemptions, max_failures,
        cancel_requested, cost_estimate, created_at, bulk_id, bulk_index, deadline, not_before, started_at, finished_at,
        custom_id, labels, redrive_of, cost, device_us, format, computed_by)),
    json_group_array(length(body)), {_GATHERED}
FROM (
    SELECT j.*, i.custom_id, i.labels, i.redrive_of, r.cost, r.device_us, r.format, r.computed_by,
        CASE WHEN ?3 OR r.format = {ERROR} THEN r.body END AS body
    FROM json_each(?1) e CROSS JOIN jobs j ON j.id = e.value CROSS JOIN job_inputs i ON i.job_id = j.id
        LEFT JOIN job_results r ON r.job_id = j.id
    WHERE j.tenant_id = ?2
    ORDER BY e.key
)
"""

_UNFINISHED = """
SELECT json_group_array(j.id) FROM json_each(?) e CROSS JOIN jobs j ON j.id = e.value WHERE j.state + 0 < 3
"""

_LARGE = "SELECT job_id, body FROM job_results WHERE job_id IN (SELECT value FROM json_each(?))"

_STATES = tuple(State)


class Reads(SharedStore):
    """Overrides of the shared readers that are called all the time."""

    _file: SqliteFile

    def _jobs(self, ids: Sequence[int], *, tenant_id: int, results: bool) -> list[JobView]:
        wanted = encode(list(dict.fromkeys(ids))).decode()
        with self._file.reading() as handle:
            rows, lengths, joined = handle.raw.execute(_VIEWS, (wanted, tenant_id, results)).fetchone()
            found = decode(rows)
            bodies = list(_bodies(handle.raw, (row[0] for row in found), decode(lengths), joined))
        return [_view(row, body, tenant_id) for row, body in zip(found, bodies, strict=True)]

    def finished_among(self, ids: Sequence[int]) -> list[int]:
        """See `JobStore.finished_among`."""
        with self._file.reading(snapshot=False) as handle:
            (unfinished,) = handle.raw.execute(_UNFINISHED, (encode(list(ids)).decode(),)).fetchone()
        waiting = set(decode(unfinished))
        return [job_id for job_id in ids if job_id not in waiting]

    def stragglers(self, queue_id: int, *, below: Mapping[tuple[int, int], int], limit: int) -> list[int]:
        """See `JobStore.stragglers`."""
        lines = encode([(*line, bound) for line, bound in below.items()]).decode()
        with self._file.reading(snapshot=False) as handle:
            rows = handle.raw.execute(_STRAGGLERS, (queue_id, limit, lines)).fetchall()
        return sorted(job_id for (ids,) in rows for job_id in decode(ids))

    def _fronts(self, connection: Connection, queue_id: int, keys: Sequence[LineKey]) -> list[list[Candidate]]:
        raw = connection.connection.driver_connection
        assert raw is not None
        # A statement a line: only so can each have its own limit.
        rows = (raw.execute(_FRONT, (queue_id, *key)).fetchone() for key in keys)
        return [list(map(Candidate, *decode(columns))) for (columns,) in rows]

    def _oldest_ms(self, connection: Connection, queue_id: int, lines: Sequence[Key]) -> int | None:
        raw = connection.connection.driver_connection
        assert raw is not None
        (created,) = raw.execute(_OLDEST, (queue_id, encode(lines).decode())).fetchone()
        return None if created is None else int(created)

    def _standing(self, connection: Connection, job_id: int, *, limit: int) -> Standing | None:
        raw = connection.connection.driver_connection
        assert raw is not None
        row = raw.execute(_STANDING, (job_id, limit)).fetchone()
        return None if row is None else Standing(*row)

    def _flush_page(
        self, connection: Connection, bulk_id: int, *, after_seq: int, limit: int
    ) -> Sequence[tuple[int, bytes]]:
        raw = connection.connection.driver_connection
        assert raw is not None
        rows: list[tuple[int, bytes]] = raw.execute(_FLUSHES, (bulk_id, after_seq, limit)).fetchall()
        return rows

    def _results(self, connection: Connection, seq_of: dict[int, int]) -> list[ResultRow]:
        raw = connection.connection.driver_connection
        assert raw is not None
        row = raw.execute(_RESULTS, (encode(list(seq_of)).decode(),)).fetchone()
        ids, indexes, states, custom_ids, formats, lengths = map(decode, row[:6])
        bodies = _bodies(raw, ids, lengths, row[6])
        states = map(_STATES.__getitem__, states)
        return list(map(ResultRow, map(seq_of.__getitem__, ids), ids, indexes, states, custom_ids, formats, bodies))


def _bodies(
    raw: Any, ids: Iterable[int], lengths: Sequence[int | None], joined: bytes | None
) -> Iterable[bytes | None]:
    """The body of each row in turn: cut from the gathered ones, fetched where large, None where there is none."""
    sizes = [0 if length is None or length >= LARGE_BODY else length for length in lengths]
    pieces = cut(joined or b"", sizes)
    if sizes == lengths:
        return pieces
    large = [job_id for job_id, length in zip(ids, lengths, strict=True) if length is not None and length >= LARGE_BODY]
    fetched = iter(_large(raw, large))
    return [
        None if length is None else piece if size == length else next(fetched)
        for length, size, piece in zip(lengths, sizes, pieces, strict=True)
    ]


def _large(raw: Any, ids: Sequence[int]) -> list[bytes]:
    if not ids:
        return []
    found = dict(raw.execute(_LARGE, (encode(ids).decode(),)))
    return [found[job_id] for job_id in ids]


def _view(row: Sequence[Any], body: bytes | None, tenant_id: int) -> JobView:
    format_ = row[23]
    error: ErrorInfo | None = load_error(body) if format_ == ERROR and body is not None else None
    shown = body is not None and error is None
    return JobView(
        id=row[0],
        tenant_id=tenant_id,
        queue_id=row[1],
        state=_STATES[row[2]],
        priority=shown_priority(row[3]),
        is_held=row[3] < 0,
        attempt=row[4],
        failures=row[5],
        crashes=row[6],
        preemptions=row[7],
        max_failures=row[8],
        cancel_requested=bool(row[9]),
        cost_estimate=row[10],
        created_at_ms=row[11],
        bulk_id=row[12],
        bulk_index=row[13],
        deadline_ms=row[14],
        not_before_ms=row[15],
        started_at_ms=row[16],
        finished_at_ms=row[17],
        custom_id=row[18],
        labels=load_labels(row[19]),
        redrive_of=row[20],
        cost=row[21],
        device_us=row[22],
        result_format=format_ if shown else None,
        result_body=body if shown else None,
        computed_by=row[24],
        error=error,
    )
