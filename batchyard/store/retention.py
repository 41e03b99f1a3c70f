"""Deleting what is no longer kept, in small steps."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, and_, func, select

from batchyard.jobs import ID_EPOCH_MS, ID_STRIDE, State
from batchyard.store.deltas import HOUR_MS, Deltas, JobRow
from batchyard.store.moves import Moves
from batchyard.store.sql import IS_RUNNING, JOB_ROW, job_rows
from batchyard.store.tables import (
    BULK_COUNTS,
    bulk_chunks,
    bulks,
    consumers,
    flushes,
    idempotency,
    jobs,
    tombstones,
    webhook_deliveries,
)

SCAN_PER_JOB = 10
"""Rows that a step may look at for each row that it may delete."""
AWAY_KEPT_MS = 24 * HOUR_MS


class Retention(Moves):
    """Retiring jobs, then the bulks, keys, tombstones and consumers that nothing speaks of any more."""

    def __init__(self) -> None:
        super().__init__()
        # Where this round of retention has come to. Owned by the leader's thread; a new round starts at 0.
        self._jobs_after = 0
        self._bulks_after = 0
        self._keys_after = 0

    def retire(self, *, finished_before_ms: int, limit: int, tombstone_ms: int) -> int:
        """See `JobStore.retire`. Jobs are looked through by id, which is by age of submission, in rounds."""
        deltas = Deltas()
        with self._reading() as connection:
            rows = self._finished(connection, finished_before_ms, limit)
        with self._writing() as connection:
            now = self._database_ms(connection)
            # Terminal is absorbing: what was found so is so still, unless somebody else deleted it.
            still = select(*JOB_ROW).where(self._among(jobs.c.id, [row.id for row in rows]))
            rows = self._lock_jobs(connection, still) if rows else []
            self._delete(connection, rows, deltas=deltas, now_ms=now)
            self._retire_bulks(connection, created_before_ms=finished_before_ms, now_ms=now, limit=limit)
            self._retire_keys(connection, created_before_ms=finished_before_ms, limit=limit)
            self._forget_the_gone(connection, now_ms=now, tombstone_ms=tombstone_ms, limit=limit)
            self._record(connection, deltas)
        return len(rows)

    def _finished(self, connection: Connection, before_ms: int, limit: int) -> list[JobRow]:
        """The next terminal jobs that are old enough, from where the last step came to."""
        newest = max(0, before_ms - ID_EPOCH_MS) << 22
        window = select(*JOB_ROW, jobs.c.finished_at).where(jobs.c.id > self._jobs_after, jobs.c.id < newest)
        scanned = window.order_by(jobs.c.id).limit(limit * SCAN_PER_JOB).subquery()
        fits = and_(scanned.c.state >= int(State.SUCCEEDED), scanned.c.finished_at < before_ms)
        columns = [scanned.c[column.name] for column in JOB_ROW]
        found = job_rows(connection.execute(select(*columns).where(fits).order_by(scanned.c.id).limit(limit)))
        if len(found) == limit:
            self._jobs_after = found[-1].id
        else:
            seen, last = connection.execute(select(func.count(), func.max(scanned.c.id))).one()
            self._jobs_after = last if seen == limit * SCAN_PER_JOB else 0
        return found

    def _retire_bulks(self, connection: Connection, *, created_before_ms: int, now_ms: int, limit: int) -> None:
        """Sealed bulks whose jobs are all gone, looked through by id, in rounds."""
        old = select(bulks).where(bulks.c.id > self._bulks_after, bulks.c.created_at < created_before_ms)
        rows = connection.execute(old.order_by(bulks.c.id).limit(limit)).all()
        for bulk in rows:
            # Only once its end was noted: webhooks hear of that first.
            is_over = bulk.finished_at is not None and bulk.retired == bulk.jobs
            if is_over and bulk.sealed_at < created_before_ms:
                self._delete_bulk(connection, bulk, now_ms=now_ms)
        self._bulks_after = rows[-1].id if len(rows) == limit else 0

    def _delete_bulk(self, connection: Connection, bulk: Row[Any], *, now_ms: int) -> None:
        for table in (BULK_COUNTS.totals, BULK_COUNTS.deltas, bulk_chunks, flushes):
            connection.execute(table.delete().where(table.c.bulk_id == bulk.id))
        of_chunks = and_(idempotency.c.tenant_id == bulk.tenant_id, idempotency.c.bulk_id == bulk.id)
        connection.execute(idempotency.delete().where(of_chunks))
        own = and_(idempotency.c.first_id == bulk.id, idempotency.c.bulk_id == 0, idempotency.c.count == 0)
        connection.execute(idempotency.delete().where(own))
        connection.execute(webhook_deliveries.delete().where(webhook_deliveries.c.subject_id == bulk.id))
        connection.execute(bulks.delete().where(bulks.c.id == bulk.id))
        buried = self._insert(tombstones).values(id=bulk.id, tenant_id=bulk.tenant_id, retired_at=now_ms)
        connection.execute(buried.on_conflict_do_nothing())

    def _retire_keys(self, connection: Connection, *, created_before_ms: int, limit: int) -> None:
        """Keys of calls whose jobs are all gone, looked through by first id, in rounds; a bulk takes its own along."""
        old = select(idempotency).where(
            idempotency.c.first_id > self._keys_after,
            idempotency.c.created_at < created_before_ms,
            idempotency.c.bulk_id == 0,
            idempotency.c.count > 0,
        )
        rows = connection.execute(old.order_by(idempotency.c.first_id).limit(limit)).all()
        for row in rows:
            last = row.first_id + (row._mapping["count"] - 1) * ID_STRIDE
            kept = select(jobs.c.id).where(jobs.c.id.between(row.first_id, last), jobs.c.tenant_id == row.tenant_id)
            kept = kept.where((jobs.c.id - row.first_id) % ID_STRIDE == 0)
            if connection.execute(kept.limit(1)).first() is None:
                mine = and_(idempotency.c.tenant_id == row.tenant_id, idempotency.c.key == row.key)
                connection.execute(idempotency.delete().where(mine, idempotency.c.bulk_id == 0))
        self._keys_after = rows[-1].first_id if len(rows) == limit else 0

    def _forget_the_gone(self, connection: Connection, *, now_ms: int, tombstone_ms: int, limit: int) -> None:
        """Tombstones that are old enough, and consumers long gone that hold nothing."""
        old = select(tombstones.c.id).where(tombstones.c.retired_at < now_ms - tombstone_ms)
        ids = connection.execute(old.order_by(tombstones.c.retired_at).limit(limit)).scalars().all()
        if ids:
            connection.execute(tombstones.delete().where(self._among(tombstones.c.id, ids)))
        # Whoever takes back what a consumer held finds it by the consumer's row.
        held = select(jobs.c.id).where(IS_RUNNING, jobs.c.owner == consumers.c.id).exists()
        away = and_(consumers.c.state.in_(("gone", "dead")), consumers.c.lease_until < now_ms - AWAY_KEPT_MS)
        connection.execute(consumers.delete().where(away, ~held))
