"""What the leader does over and over, in bounded steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, or_, select

from batchyard.jobs import ID_STRIDE, State
from batchyard.store.bulks import SWEEP_HELD, SWEEP_PENDING
from batchyard.store.deltas import Deltas, JobRow
from batchyard.store.moves import Moves
from batchyard.store.sql import IN_SWEEP, IS_PREEMPTED, IS_QUEUED, IS_WAITING, JOB_ROW
from batchyard.store.tables import bulk_chunks, bulks, jobs, tenants

CAN_EXPIRE = and_(jobs.c.deadline.is_not(None), or_(IS_QUEUED, IS_WAITING))


class Chores(Moves):
    """Promoting, expiring and sweeping. One leader at a time; two do no harm."""

    def promote_due(self, *, limit: int) -> dict[int, list[int]]:
        """See `JobStore.promote_due`."""
        deltas = Deltas()
        if not self._finds(_due(self.now_ms(), limit=limit)):
            return {}
        with self._writing() as connection:
            now = self._database_ms(connection)
            rows = self._lock_jobs(connection, _due(now, limit=limit))
            queued = self._requeue(connection, rows, deltas=deltas, now_ms=now, not_before=None)
            self._record(connection, deltas)
        return queued

    def expire_due(self, *, limit: int) -> list[int]:
        """See `JobStore.expire_due`."""
        deltas = Deltas()
        if not self._finds(_past(self.now_ms(), limit=limit)):
            return []
        with self._writing() as connection:
            # The estimate of the clock is as wrong as the answer that it was taken from was slow.
            now = self._database_ms(connection)
            rows = self._lock_jobs(connection, _past(now, limit=limit))
            for asked, to in ((True, State.CANCELLED), (False, State.EXPIRED)):
                going = [row for row in rows if bool(row.cancel_requested) is asked]
                self._move(connection, going, to, deltas=deltas, finished_at=now)
            self._record(connection, deltas)
        return [row.id for row in rows]

    def move_to_firm(
        self, queues: Mapping[int, int], *, preemptions: int, start_before_ms: int, limit: int
    ) -> dict[int, list[int]]:
        """See `JobStore.move_to_firm`."""
        if not queues:
            return {}
        tolerant = self._among(jobs.c.queue_id, sorted(queues))
        free = jobs.c.priority >= 0
        # Each in the words of its index; the tenants are named so that the range of `start_by` is one.
        often = and_(tolerant, IS_PREEMPTED, jobs.c.preemptions >= preemptions, free)
        urgent = and_(
            tolerant,
            jobs.c.tenant_id.in_(select(tenants.c.id)),
            IS_QUEUED,
            jobs.c.start_by.is_not(None),
            jobs.c.start_by < start_before_ms,
            free,
        )
        found = [select(*JOB_ROW).where(one).limit(limit) for one in (often, urgent)]
        if not self._finds(*found):
            return {}
        deltas = Deltas()
        moved: dict[int, list[int]] = {}
        with self._writing() as connection:
            rows = {row.id: row for statement in found for row in self._lock_jobs(connection, statement)}
            for old, new in queues.items():
                going = [row for row in rows.values() if row.queue_id == old]
                self._change_queue(connection, going, queue_id=new, deltas=deltas)
                if queued := sorted(row.id for row in going if row.state == State.QUEUED):
                    moved[new] = queued
            self._record(connection, deltas)
        return moved

    def _change_queue(self, connection: Connection, rows: Sequence[JobRow], *, queue_id: int, deltas: Deltas) -> None:
        if not rows:
            return
        ids = [row.id for row in rows]
        connection.execute(jobs.update().where(self._among(jobs.c.id, ids)).values(queue_id=queue_id))
        for row in rows:
            deltas.move(row, State(row.state), queue_id=queue_id)

    # --- bulks ---

    def sweep_bulks(self, *, limit: int) -> int:
        """See `JobStore.sweep_bulks`."""
        pending = select(bulks).where(IN_SWEEP, bulks.c.sweep == SWEEP_PENDING).order_by(bulks.c.id)
        if not self._finds(pending):
            return 0
        deltas = Deltas()
        moved = looked_at = 0
        with self._writing() as connection:
            now = self._database_ms(connection)
            while looked_at < limit:
                bulk = connection.execute(pending.limit(1).with_for_update()).one_or_none()
                if bulk is None:
                    break
                ids = self._next_ids(connection, bulk, limit=limit - looked_at)
                moved += self._sweep(connection, bulk, ids, deltas=deltas, now_ms=now)
                looked_at += len(ids)
                # Nothing left to look at: quiet, unless a claim must go on asking whether it is paused.
                still = SWEEP_HELD if bulk.paused and not bulk.cancel_requested else 0
                done = {"swept": bulk.swept + len(ids)} if ids else {"sweep": still}
                connection.execute(bulks.update().where(bulks.c.id == bulk.id).values(done))
            self._record(connection, deltas)
        return moved

    def _next_ids(self, connection: Connection, bulk: Row[Any], *, limit: int) -> list[int]:
        """Up to `limit` ids of the bulk's jobs from the index `swept` on, from one chunk."""
        before = select(bulk_chunks).where(bulk_chunks.c.bulk_id == bulk.id, bulk_chunks.c.first_index <= bulk.swept)
        chunk = connection.execute(before.order_by(bulk_chunks.c.first_index.desc()).limit(1)).one_or_none()
        if chunk is None:
            return []
        size: int = chunk._mapping["count"]  # `count` is a method of every row
        skipped = bulk.swept - chunk.first_index
        return [chunk.first_id + place * ID_STRIDE for place in range(skipped, min(size, skipped + limit))]

    def _sweep(self, connection: Connection, bulk: Row[Any], ids: list[int], *, deltas: Deltas, now_ms: int) -> int:
        """Bring some jobs of a bulk into line with what was asked of it; returns how many changed."""
        if not ids:
            return 0
        mine = select(*JOB_ROW).where(self._among(jobs.c.id, ids), jobs.c.state < int(State.SUCCEEDED))
        if not bulk.cancel_requested:
            wrong = jobs.c.priority >= 0 if bulk.paused else jobs.c.priority < 0
            rows = self._lock_all_jobs(connection, mine.where(wrong, jobs.c.state == int(State.QUEUED)))
            self._hold(connection, rows, held=bulk.paused, deltas=deltas)
            return len(rows)
        rows = self._lock_all_jobs(connection, mine)
        running = [row.id for row in rows if row.state == State.RUNNING]
        if running:
            flagged = jobs.update().where(self._among(jobs.c.id, running))
            connection.execute(flagged.values(cancel_requested=True))
        waiting = [row for row in rows if row.state != State.RUNNING]
        done = {"finished_at": now_ms, "cancel_requested": True}
        self._move(connection, waiting, State.CANCELLED, deltas=deltas, **done)
        return len(rows)


def _due(now_ms: int, *, limit: int) -> Select[Any]:
    """Waiting jobs whose next try has come."""
    return select(*JOB_ROW).where(IS_WAITING, jobs.c.not_before <= now_ms).limit(limit)


def _past(now_ms: int, *, limit: int) -> Select[Any]:
    """Jobs that have not started by their deadline."""
    return select(*JOB_ROW).where(CAN_EXPIRE, jobs.c.deadline <= now_ms).limit(limit)
