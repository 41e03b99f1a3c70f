"""Bulks: their life, and their results in the order of completion."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, func, select

from batchyard.errors import Conflict, Gone, IdempotencyConflict, NotFound
from batchyard.jobs import State
from batchyard.store.base import BulkConfig, BulkView, ResultRow
from batchyard.store.tables import BULK_COUNTS, bulks, flushes, idempotency, job_inputs, job_results, jobs, tombstones
from batchyard.store.webhooks import Webhooks

SWEEP_PENDING = 1
SWEEP_HELD = 2


class Bulks(Webhooks):
    """Everything about bulks but the insert of their jobs and the sweep."""

    def create_bulk(self, config: BulkConfig) -> BulkView:
        """See `JobStore.create_bulk`."""
        self._prepare_ids()
        self._expect_webhooks([] if config.webhook is None else [config.tenant_id])
        with self._writing() as connection:
            known = self._known_bulk(connection, config)
            if known is not None:
                return self._bulk(connection, known, tenant_id=config.tenant_id)
            now = self._database_ms(connection)
            bulk_id = self._take_ids(1, now_ms=now)[0]
            if config.idempotency_key is not None and not self._take_key(connection, config, bulk_id, now_ms=now):
                known = self._known_bulk(connection, config)
                if known is None:
                    raise NotFound("the bulk of this idempotency key was just deleted; try again")
                return self._bulk(connection, known, tenant_id=config.tenant_id)
            values = {
                "id": bulk_id,
                "tenant_id": config.tenant_id,
                "queue_id": config.queue_id,
                "defaults": config.defaults,
                "chunk_size": config.chunk_size,
                "created_at": now,
                "created_by": config.created_by,
                "webhook": config.webhook,
            }
            connection.execute(bulks.insert().values(values))
            return self._bulk(connection, bulk_id, tenant_id=config.tenant_id)

    def _known_bulk(self, connection: Connection, config: BulkConfig) -> int | None:
        if config.idempotency_key is None:
            return None
        mine = and_(
            idempotency.c.tenant_id == config.tenant_id,
            idempotency.c.bulk_id == 0,
            idempotency.c.key == config.idempotency_key,
        )
        row = connection.execute(select(idempotency).where(mine)).one_or_none()
        if row is None:
            return None
        if row._mapping["count"] != 0 or bytes(row.digest) != (config.idempotency_digest or b""):
            raise idempotency_conflict(config.idempotency_key)
        return int(row.first_id)

    def _take_key(self, connection: Connection, config: BulkConfig, bulk_id: int, *, now_ms: int) -> bool:
        """False where another call took the key meanwhile (it has committed by then)."""
        insert = self._insert(idempotency).values(
            tenant_id=config.tenant_id,
            bulk_id=0,
            key=config.idempotency_key,
            digest=config.idempotency_digest or b"",
            first_id=bulk_id,
            count=0,
            created_at=now_ms,
        )
        return bool(connection.execute(insert.on_conflict_do_nothing()).rowcount)

    def seal_bulk(self, *, tenant_id: int, bulk_id: int) -> BulkView:
        """See `JobStore.seal_bulk`."""
        with self._writing() as connection:
            now = self._database_ms(connection)
            mine = and_(bulks.c.id == bulk_id, bulks.c.tenant_id == tenant_id)
            connection.execute(bulks.update().where(mine, bulks.c.sealed_at.is_(None)).values(sealed_at=now))
            return self._bulk(connection, bulk_id, tenant_id=tenant_id)

    def cancel_bulk(self, bulk_id: int, *, tenant_id: int) -> BulkView:
        """See `JobStore.cancel_bulk`."""
        with self._writing() as connection:
            now = self._database_ms(connection)
            mine = and_(bulks.c.id == bulk_id, bulks.c.tenant_id == tenant_id, bulks.c.cancel_requested.is_(False))
            asked = bulks.update().where(mine)
            connection.execute(
                asked.values(
                    cancel_requested=True,
                    sealed_at=func.coalesce(bulks.c.sealed_at, now),
                    sweep=SWEEP_PENDING,
                    swept=0,
                )
            )
            return self._bulk(connection, bulk_id, tenant_id=tenant_id)

    def pause_bulk(self, bulk_id: int, *, tenant_id: int, paused: bool) -> BulkView:
        """See `JobStore.pause_bulk`."""
        mine = and_(bulks.c.id == bulk_id, bulks.c.tenant_id == tenant_id, bulks.c.paused.is_(not paused))
        with self._writing() as connection:
            connection.execute(bulks.update().where(mine).values(paused=paused, sweep=SWEEP_PENDING, swept=0))
            return self._bulk(connection, bulk_id, tenant_id=tenant_id)

    # --- readers ---

    def get_bulk(self, bulk_id: int, *, tenant_id: int) -> BulkView:
        """See `JobStore.get_bulk`."""
        with self._reading() as connection:
            return self._bulk(connection, bulk_id, tenant_id=tenant_id)

    def list_bulks(self, *, tenant_id: int, before_id: int | None = None, limit: int = 100) -> list[BulkView]:
        """See `JobStore.list_bulks`."""
        mine = select(bulks).where(bulks.c.tenant_id == tenant_id).order_by(bulks.c.id.desc()).limit(limit)
        if before_id is not None:
            mine = mine.where(bulks.c.id < before_id)
        with self._reading() as connection:
            return self._views(connection, connection.execute(mine).all())

    def bulk_results(self, bulk_id: int, *, after_seq: int, limit: int) -> list[ResultRow]:
        """See `JobStore.bulk_results`."""
        with self._reading() as connection:
            while True:
                seq_of: dict[int, int] = {}
                for seq, ids in self._flushes_after(connection, bulk_id, after_seq=after_seq, limit=limit):
                    seq_of.update(dict.fromkeys(ids, seq))
                rows = self._results(connection, seq_of) if seq_of else []
                # Flushes whose jobs are all retired are no end: what comes after them must be reached.
                if rows or not seq_of:
                    return rows
                after_seq = max(seq_of.values())

    def has_unnumbered(self, bulk_id: int) -> bool:
        """See `JobStore.has_unnumbered`."""
        left = select(flushes.c.id).where(flushes.c.bulk_id == bulk_id, flushes.c.seq.is_(None)).limit(1)
        with self._reading() as connection:
            return connection.execute(left).first() is not None

    def _flushes_after(
        self, connection: Connection, bulk_id: int, *, after_seq: int, limit: int
    ) -> list[tuple[int, Sequence[int]]]:
        """Whole flushes in order, until at least `limit` ids are gathered."""
        found: list[tuple[int, Sequence[int]]] = []
        gathered = 0
        while gathered < limit:
            # A flush holds some hundred ids as a rule: few round trips whatever they hold.
            size = max(4, (limit - gathered) // 256)
            page = self._flush_page(connection, bulk_id, after_seq=after_seq, limit=size)
            for seq, packed in page:
                if gathered >= limit:
                    break
                found.append((seq, unpack_ids(packed)))
                gathered += len(found[-1][1])
                after_seq = seq
            if len(page) < size:
                break
        return found

    def _flush_page(
        self, connection: Connection, bulk_id: int, *, after_seq: int, limit: int
    ) -> Sequence[tuple[int, bytes]]:
        """Numbers and packed ids of the next flushes, in order. A dialect may know a faster way."""
        mine = and_(flushes.c.bulk_id == bulk_id, flushes.c.seq > after_seq)
        following = select(flushes.c.seq, flushes.c.job_ids).where(mine).order_by(flushes.c.seq).limit(limit)
        return [(row.seq, row.job_ids) for row in connection.execute(following)]

    def _results(self, connection: Connection, seq_of: dict[int, int]) -> list[ResultRow]:
        """The rows of the ids, in the order of the mapping. A dialect may know a faster way."""
        rows = connection.execute(result_query().where(self._among(jobs.c.id, list(seq_of)))).all()
        by_id = {row[0]: row for row in rows}
        return [
            ResultRow(
                seq, row[0], row[1] or 0, State(row[2]), row[3], row[4], None if row[5] is None else bytes(row[5])
            )
            for job_id, seq in seq_of.items()
            if (row := by_id.get(job_id)) is not None
        ]

    def _bulk(self, connection: Connection, bulk_id: int, *, tenant_id: int) -> BulkView:
        """NotFound, or Gone."""
        mine = select(bulks).where(bulks.c.id == bulk_id, bulks.c.tenant_id == tenant_id)
        for view in self._views(connection, connection.execute(mine).all()):
            return view
        buried = select(tombstones.c.id).where(tombstones.c.id == bulk_id, tombstones.c.tenant_id == tenant_id)
        if connection.execute(buried).first() is not None:
            raise Gone("this bulk and its results are no longer kept")
        raise unknown_bulk()

    def _views(self, connection: Connection, rows: Sequence[Row[Any]]) -> list[BulkView]:
        sums = self._sums(BULK_COUNTS).subquery()
        counted = select(sums).where(sums.c.bulk_id.in_([row.id for row in rows]), sums.c.jobs != 0)
        counts: dict[int, dict[State, int]] = {}
        cost: dict[int, int] = {}
        for bulk_id, state, count, state_cost in connection.execute(counted):
            counts.setdefault(bulk_id, {})[State(state)] = int(count)
            if state == State.SUCCEEDED:
                cost[bulk_id] = int(state_cost)
        return [_view(row, counts.get(row.id, {}), cost.get(row.id, 0)) for row in rows]


def result_query() -> Select[Any]:
    """What a ResultRow shows beside its seq, in its order; to be narrowed by the caller."""
    joined = jobs.join(job_inputs, job_inputs.c.job_id == jobs.c.id).outerjoin(
        job_results, job_results.c.job_id == jobs.c.id
    )
    columns = (jobs.c.id, jobs.c.bulk_index, jobs.c.state, job_inputs.c.custom_id)
    return select(*columns, job_results.c.format, job_results.c.body).select_from(joined)


def pack_ids(ids: Sequence[int]) -> bytes:
    return struct.pack(f">{len(ids)}q", *ids)


def unpack_ids(packed: bytes | memoryview) -> tuple[int, ...]:
    return struct.unpack(f">{len(packed) // 8}q", packed)


def pack_flushes(flushed: dict[int, list[int]]) -> Iterable[tuple[int, bytes]]:
    """(bulk, packed ids) in bulk order."""
    return ((bulk_id, pack_ids(ids)) for bulk_id, ids in sorted(flushed.items()))


def unknown_bulk() -> NotFound:
    return NotFound("no such bulk")


def sealed_bulk() -> Conflict:
    return Conflict("this bulk is sealed: it takes no further jobs")


def idempotency_conflict(key: str) -> IdempotencyConflict:
    return IdempotencyConflict(
        f"the idempotency key {key!r} was used with another body: send that one again, or take a new key", key=key
    )


def _view(row: Row[Any], counts: dict[State, int], cost: int) -> BulkView:
    return BulkView(
        id=row.id,
        tenant_id=row.tenant_id,
        queue_id=row.queue_id,
        defaults=bytes(row.defaults),
        chunk_size=row.chunk_size,
        jobs=row.jobs,
        sealed_at_ms=row.sealed_at,
        paused=row.paused,
        cancel_requested=row.cancel_requested,
        created_at_ms=row.created_at,
        counts=counts,
        cost=cost,
    )
