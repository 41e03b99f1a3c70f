"""Changes of state by shared statements: of rows already locked, with their deltas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, and_, func, or_, select

from batchyard.jobs import State
from batchyard.store.deltas import Deltas, JobRow
from batchyard.store.payloads import Payloads
from batchyard.store.sql import JOB_ROW
from batchyard.store.tables import (
    bulks,
    followers,
    job_inputs,
    job_labels,
    job_results,
    job_webhooks,
    jobs,
    tombstones,
    webhook_deliveries,
)
from batchyard.store.views import load_labels


class Moves(Payloads):
    """How rows change state outside the hot statements. Every method takes rows that this transaction has locked."""

    def _move(
        self, connection: Connection, rows: Sequence[JobRow], to: State, *, deltas: Deltas, **values: object
    ) -> None:
        """Give all rows the state `to` and the values named."""
        if not rows:
            return
        ids = [row.id for row in rows]
        connection.execute(jobs.update().where(self._among(jobs.c.id, ids)).values(state=int(to), **values))
        for row in rows:
            deltas.move(row, to)
        self._free_followers(connection, [row.id for row in rows if row.state == State.RUNNING])

    def _requeue(
        self, connection: Connection, rows: Sequence[JobRow], *, deltas: Deltas, now_ms: int, **values: object
    ) -> dict[int, list[int]]:
        """Send rows back to their queues: cancelled where that was asked for, held where their bulk is paused.

        Returns queue id → ids that may be ticketed, ascending.
        """
        cancelled = [row for row in rows if row.cancel_requested]
        self._move(connection, cancelled, State.CANCELLED, deltas=deltas, finished_at=now_ms)
        going = [row for row in rows if not row.cancel_requested]
        paused = self._held_bulks(connection, going)
        held = [row for row in going if row.bulk_id in paused]
        free = [row for row in going if row.bulk_id not in paused]
        self._move(connection, free, State.QUEUED, deltas=deltas, **values)
        self._hold(connection, held, held=True, deltas=deltas, **values)
        queued: dict[int, list[int]] = {}
        for row in sorted(free):
            queued.setdefault(row.queue_id, []).append(row.id)
        return queued

    def _hold(
        self, connection: Connection, rows: Sequence[JobRow], *, held: bool, deltas: Deltas, **values: object
    ) -> None:
        """Leave rows queued at a held (negative) or free priority; those that already are so keep theirs."""
        if not rows:
            return
        flip = (jobs.c.priority >= 0) if held else (jobs.c.priority < 0)
        priority = sa.case((flip, -1 - jobs.c.priority), else_=jobs.c.priority)
        changed = jobs.update().where(self._among(jobs.c.id, [row.id for row in rows]))
        connection.execute(changed.values(state=int(State.QUEUED), priority=priority, **values))
        for row in rows:
            flipped = -1 - row.priority if (row.priority >= 0) == held else row.priority
            deltas.move(row, State.QUEUED, priority=flipped)
        self._free_followers(connection, [row.id for row in rows if row.state == State.RUNNING])

    def _free_followers(self, connection: Connection, ids: Sequence[int]) -> None:
        """These jobs have just ceased to run: those that let them go first are due. One that somebody else holds now is
        so with the lease that it waits for."""
        if not ids:
            return
        behind = self._among(followers.c.computing_id, ids)
        if connection.execute(select(followers.c.job_id).where(behind).limit(1)).first() is None:
            return
        told = select(*JOB_ROW).join(followers, followers.c.job_id == jobs.c.id).where(behind)
        # The sum keeps planners from the index on what is due: the followers are the way in.
        told = told.where(jobs.c.state + 0 == int(State.WAITING), jobs.c.attempt == followers.c.attempt)
        due = [row.id for row in self._lock_jobs(connection, told)]
        if due:
            changed = jobs.update().where(self._among(jobs.c.id, due))
            connection.execute(changed.values(not_before=self._database_ms(connection)))
        connection.execute(followers.delete().where(behind))

    def _delete(self, connection: Connection, rows: Sequence[JobRow], *, deltas: Deltas, now_ms: int) -> list[int]:
        """Delete terminal jobs with what belongs to them, leaving tombstones, and the payloads that they referred to.

        Returns those payloads to which no other job refers.
        """
        if not rows:
            return []
        ids = [row.id for row in rows]
        self._count_retired(connection, ids, deltas=deltas, now_ms=now_ms)
        self._delete_labels(connection, ids)
        for table, column in (
            (webhook_deliveries, webhook_deliveries.c.subject_id),
            (job_webhooks, job_webhooks.c.job_id),
            (job_results, job_results.c.job_id),
            (job_inputs, job_inputs.c.job_id),
            (jobs, jobs.c.id),
        ):
            connection.execute(table.delete().where(self._among(column, ids)))
        buried = [{"id": row.id, "tenant_id": row.tenant_id, "retired_at": now_ms} for row in rows]
        connection.execute(self._insert(tombstones).on_conflict_do_nothing(), buried)
        for row in rows:
            deltas.drop(row)
        of_bulks = Counter(row.bulk_id for row in rows if row.bulk_id is not None)
        for bulk_id, count in sorted(of_bulks.items()):
            counted = bulks.update().where(bulks.c.id == bulk_id)
            connection.execute(counted.values(retired=bulks.c.retired + count))
        # Payloads are locked after bulks, as submissions do.
        return self._release_payloads(connection, rows, deltas=deltas, now_ms=now_ms)

    def _count_retired(self, connection: Connection, ids: Sequence[int], *, deltas: Deltas, now_ms: int) -> None:
        """The bytes that go, as they were counted when they came: a retry's error was not."""
        counted = and_(
            job_results.c.job_id == jobs.c.id,
            or_(jobs.c.state == int(State.SUCCEEDED), jobs.c.state == int(State.FAILED)),
        )
        kept: sa.Select[Any] = (
            select(
                jobs.c.tenant_id,
                jobs.c.queue_id,
                func.sum(func.length(job_inputs.c.body) + func.coalesce(func.length(job_results.c.body), 0)),
            )
            .select_from(
                jobs.join(job_inputs, job_inputs.c.job_id == jobs.c.id).outerjoin(job_results, counted),
            )
            .where(self._among(jobs.c.id, ids))
            .group_by(jobs.c.tenant_id, jobs.c.queue_id)
        )
        for tenant_id, queue_id, size in connection.execute(kept):
            deltas.use(tenant_id=tenant_id, queue_id=queue_id, now_ms=now_ms, retired_bytes=int(size))

    def _delete_labels(self, connection: Connection, ids: Sequence[int]) -> None:
        """Labels are found by their whole key: the job says which it has."""
        labelled = select(jobs.c.tenant_id, job_inputs.c.job_id, job_inputs.c.labels).join_from(
            job_inputs, jobs, jobs.c.id == job_inputs.c.job_id
        )
        rows = connection.execute(
            labelled.where(self._among(job_inputs.c.job_id, ids), job_inputs.c.labels.is_not(None))
        ).all()
        by_label: dict[tuple[int, str], list[int]] = {}
        for tenant_id, job_id, labels in rows:
            for label in load_labels(labels):
                by_label.setdefault((tenant_id, label), []).append(job_id)
        for (tenant_id, label), labelled_ids in sorted(by_label.items()):
            mine = and_(job_labels.c.tenant_id == tenant_id, job_labels.c.label == label)
            connection.execute(job_labels.delete().where(mine, self._among(job_labels.c.job_id, labelled_ids)))
