"""The job store on SQLite: hot statements by the driver, everything else shared with Postgres."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from batchyard.jobs import Accepted, ClaimedJob, Outcome, Submission
from batchyard.store.bulks import pack_flushes
from batchyard.store.deltas import Deltas
from batchyard.store.ledger import plain_sums
from batchyard.store.sqlite import admission, claims
from batchyard.store.sqlite.file import Handle, SqliteFile
from batchyard.store.sqlite.reads import Reads
from batchyard.store.tables import BACKLOG, Ledger

encode = msgspec.json.encode
decode = msgspec.json.decode

_LEDGERS = {
    "backlog": """
        INSERT INTO backlog (queue_id, tenant_id, priority, state, bucket, jobs, cost)
        SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6
        FROM json_each(?) WHERE true
        ON CONFLICT DO UPDATE SET jobs = jobs + excluded.jobs, cost = cost + excluded.cost
        """,
    "bulk_counts": """
        INSERT INTO bulk_counts (bulk_id, state, jobs, cost)
        SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?) WHERE true
        ON CONFLICT DO UPDATE SET jobs = jobs + excluded.jobs, cost = cost + excluded.cost
        """,
    "usage": """
        INSERT INTO usage
            (tenant_id, queue_id, hour, jobs, cost, device_us, input_bytes, result_bytes, retired_bytes)
        SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7,
            value ->> 8
        FROM json_each(?) WHERE true
        ON CONFLICT DO UPDATE SET jobs = jobs + excluded.jobs, cost = cost + excluded.cost,
            device_us = device_us + excluded.device_us, input_bytes = input_bytes + excluded.input_bytes,
            result_bytes = result_bytes + excluded.result_bytes, retired_bytes = retired_bytes + excluded.retired_bytes
        """,
}

_SERVED = """
UPDATE job_results SET computed_by = told.by
FROM (SELECT value ->> 0 AS id, value ->> 1 AS by FROM json_each(?)) told WHERE job_id = told.id
"""

_FLUSH = """
INSERT INTO flushes (id, bulk_id, seq, job_ids)
SELECT next, ?1, next, ?2 FROM (SELECT coalesce(max(id), 0) + 1 AS next FROM flushes)
"""


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class SqliteStore(Reads):
    """A `JobStore` in one SQLite file, or in memory where `path` is None. The schema must be there.

    `clock` is the database's clock, in Unix milliseconds: that of this machine, on which every user of the file is.
    """

    def __init__(self, path: Path | None, *, clock: Callable[[], int] = wall_clock_ms) -> None:
        super().__init__()
        self._file = SqliteFile(path)
        self._clock = clock

    # --- life ---

    def prepare(self, upgrade: Callable[[sa.Connection], None]) -> None:
        """Let `upgrade` make the schema over this store's own connection; a database in memory has no other."""
        with self._file.reading(snapshot=False) as handle:
            upgrade(handle.core)

    def close(self) -> None:
        """See `JobStore.close`."""
        self._file.close()

    def ping(self) -> None:
        """See `JobStore.ping`."""
        with self._file.reading(snapshot=False) as handle:
            handle.raw.execute("SELECT 1 FROM counters LIMIT 1").fetchone()

    def now_ms(self) -> int:
        """See `JobStore.now_ms`."""
        return self._clock()

    def durability(self) -> str:
        """See `JobStore.durability`."""
        return "none: sqlite in memory" if self._file.path is None else "sqlite wal synchronous=FULL, claims NORMAL"

    # --- what the shared statements ask for ---

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._file.reading() as handle:
            yield handle.core

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with self._file.writing() as handle:
            yield handle.core

    def _database_ms(self, connection: sa.Connection) -> int:
        return self._clock()

    def _insert(self, table: sa.Table) -> sqlite.Insert:
        return sqlite.insert(table)

    def _among(self, column: sa.ColumnElement[int], ids: Sequence[int]) -> sa.ColumnElement[bool]:
        packed = sa.func.json_each(encode(list(ids)).decode()).table_valued("value")
        return column.in_(sa.select(packed.c.value))

    def _text_member(self, body: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[str]:
        return sa.func.json_extract(sa.cast(body, sa.Text), f"$.{name}", type_=sa.Text)

    def _sums(self, ledger: Ledger) -> sa.Select[Any]:
        return plain_sums(ledger)

    def _record(self, connection: sa.Connection, deltas: Deltas) -> None:
        self._record_raw(connection.connection.driver_connection, deltas)
        if deltas.ended:
            self._announce(connection, deltas.ended)

    def _record_raw(self, raw: Any, deltas: Deltas) -> None:
        """Writers are serial here: deltas go straight into their sums, and a flush's number is its id."""
        rows = {"backlog": deltas.backlog_rows(), "bulk_counts": deltas.bulk_rows(), "usage": deltas.usage_rows()}
        for name, changed in rows.items():
            if changed:
                raw.execute(_LEDGERS[name], (encode(changed).decode(),))
        for flush in pack_flushes(deltas.flushed):
            raw.execute(_FLUSH, flush)

    # --- hot paths ---

    def submit(self, submissions: Sequence[Submission]) -> list[Accepted | Exception]:
        """See `JobStore.submit`."""
        if not submissions:
            return []
        self._prepare_ids()
        self._expect_webhooks(one.tenant_id for one in submissions if one.webhook is not None)
        packed = admission.pack_large(submissions)
        deltas = Deltas()
        with self._file.writing() as handle:
            now_ms = self._clock()
            answers = admission.submit(
                handle.raw,
                submissions,
                packed,
                now_ms=now_ms,
                take_ids=lambda count: self._take_ids(count, now_ms=now_ms),
                deltas=deltas,
            )
            self._record_raw(handle.raw, deltas)
        return answers

    def claim(self, tickets: Sequence[tuple[int, Sequence[int]]], *, owner: int) -> list[ClaimedJob]:
        """See `JobStore.claim`."""
        by_queue: dict[int, list[Sequence[int]]] = {}
        for queue_id, ids in tickets:
            by_queue.setdefault(queue_id, []).append(sorted(ids))
        builders: list[Callable[[], list[ClaimedJob]]] = []
        deltas = Deltas()
        # Where the machine goes down the consumer does too, and an undone claim leaves the job queued as it was.
        with self._file.writing(is_durable=False) as handle:
            now_ms = self._clock()
            lease_until, paused, held_bulks = handle.raw.execute(claims.PERMIT, (owner,)).fetchone()
            if lease_until is None or lease_until <= now_ms:
                return []
            for queue_id in by_queue.keys() - set(decode(paused)):
                ids = list(dict.fromkeys(chain.from_iterable(by_queue[queue_id])))
                build = claims.claim_queue(
                    handle.raw, queue_id, ids, owner=owner, now_ms=now_ms, held_bulks=held_bulks, deltas=deltas
                )
                if build is not None:
                    builders.append(build)
            self._record_raw(handle.raw, deltas)
        return [job for build in builders for job in build()]

    def finish(self, outcomes: Sequence[Outcome], *, owner: int) -> list[int]:
        """See `JobStore.finish`."""
        if not outcomes:
            return []
        written: set[int] = set()
        writable = outcomes
        moved, results = claims.pack_states(writable), claims.pack_results(writable, owner=owner)
        with self._file.writing() as handle:
            now_ms = self._clock()
            if not claims.write_states(handle.raw, moved, owner=owner, now_ms=now_ms):
                _start_over(handle)
                writable, written = claims.sort_out(handle.raw, outcomes, owner=owner)
                moved, results = claims.pack_states(writable), claims.pack_results(writable, owner=owner)
                held = claims.write_states(handle.raw, moved, owner=owner, now_ms=now_ms)
                assert held, "a row changed inside our own write transaction"
            for statement, bound in results:
                handle.raw.execute(statement, bound)
            deltas = Deltas()
            claims.count_outcomes(writable, now_ms=now_ms, deltas=deltas)
            self._free_followers(handle.core, [outcome.job.id for outcome in writable if outcome.job.is_followed])
            if served := [(one.job.id, one.computed_by) for one in writable if one.computed_by is not None]:
                handle.raw.execute(_SERVED, (encode(served).decode(),))
            self._record_raw(handle.raw, deltas)
            (tenants,) = handle.raw.execute(claims.LISTENING).fetchone()
            if tenants != "[]":
                self._announce(handle.core, claims.ended(writable, set(decode(tenants))))
        if writable is outcomes:
            return [outcome.job.id for outcome in outcomes]
        written.update(outcome.job.id for outcome in writable)
        return list(dict.fromkeys(outcome.job.id for outcome in outcomes if outcome.job.id in written))

    def fold(self, *, limit: int) -> int:
        """See `JobStore.fold`. Deltas are folded as they come; what is left to do is to drop empty sums."""
        empty = sa.and_(BACKLOG.totals.c.jobs == 0, BACKLOG.totals.c.cost == 0)
        with self._reading() as connection:
            if connection.execute(sa.select(sa.literal(1)).where(empty).limit(1)).first() is None:
                return 0
        with self._writing() as connection:
            return connection.execute(BACKLOG.totals.delete().where(empty)).rowcount


def _start_over(handle: Handle) -> None:
    """Undo what this transaction wrote, still being the only writer among those that take turns."""
    handle.raw.execute("ROLLBACK")
    handle.raw.execute("BEGIN IMMEDIATE")
