"""Readers of jobs."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, Select, and_, func, literal_column, or_, select

from batchyard.jobs import State
from batchyard.store.base import JobFilter, JobPage, JobView
from batchyard.store.sql import IS_RUNNING, IS_WAITING, SqlStore
from batchyard.store.tables import job_labels, jobs, tombstones
from batchyard.store.views import job_view, view_query

PAGE_SCAN = 5_000
"""Rows that a page of a listing looks at, at most."""

MAX_ID = (1 << 63) - 1

_RARE = or_(IS_WAITING, jobs.c.state > literal_column("3"))
_INDEXED: dict[State | None, ColumnElement[bool]] = {
    State.RUNNING: and_(IS_RUNNING, jobs.c.owner > 0),
    State.WAITING: _RARE,
    State.FAILED: _RARE,
    State.CANCELLED: _RARE,
    State.EXPIRED: _RARE,
}
"""States with a partial index, and its condition."""


class Readers(SqlStore):
    """What pollers and listings ask."""

    def get_jobs(self, ids: Sequence[int], *, tenant_id: int, results: bool = True) -> list[JobView]:
        """See `JobStore.get_jobs`."""
        if not ids:
            return []
        wanted = view_query(results=results).where(self._among(jobs.c.id, ids), jobs.c.tenant_id == tenant_id)
        with self._reading() as connection:
            return [job_view(row) for row in connection.execute(wanted)]

    def finished_among(self, ids: Sequence[int]) -> list[int]:
        """See `JobStore.finished_among`."""
        if not ids:
            return []
        unfinished = select(jobs.c.id).where(self._among(jobs.c.id, ids), jobs.c.state < int(State.SUCCEEDED))
        with self._reading() as connection:
            waiting = set(connection.execute(unfinished).scalars())
        return [job_id for job_id in ids if job_id not in waiting]

    def retired_among(self, ids: Sequence[int], *, tenant_id: int) -> list[int]:
        """See `JobStore.retired_among`."""
        if not ids:
            return []
        buried = select(tombstones.c.id).where(self._among(tombstones.c.id, ids), tombstones.c.tenant_id == tenant_id)
        with self._reading() as connection:
            return list(connection.execute(buried).scalars())

    def list_jobs(self, filter: JobFilter) -> JobPage:  # noqa: A002  the protocol's name
        """See `JobStore.list_jobs`. Running and rare states are found by index; else a page looks at PAGE_SCAN rows."""
        with self._reading() as connection:
            ids, next_before_id = self._page(connection, filter)
            wanted = view_query(results=False).where(self._among(jobs.c.id, ids))
            views = [job_view(row) for row in connection.execute(wanted)] if ids else []
        return JobPage(jobs=sorted(views, key=lambda view: -view.id), next_before_id=next_before_id)

    def _page(self, connection: Connection, wanted: JobFilter) -> tuple[list[int], int | None]:
        """The ids of a page, and the cursor of the next page, if there may be one."""
        before_id = MAX_ID if wanted.before_id is None else wanted.before_id
        if wanted.label is None and wanted.state in _INDEXED:
            found = select(jobs.c.id).where(_INDEXED[wanted.state], jobs.c.id + 0 < before_id)
            # The sums keep planners from walking through all jobs by id.
            ids = self._ids(connection, found.order_by((jobs.c.id + 0).desc()), wanted)
            return ids, ids[-1] if len(ids) == wanted.limit else None
        candidates = _by_label(wanted, before_id) if wanted.label is not None else _by_id(before_id)
        scanned = candidates.order_by(candidates.selected_columns[0].desc()).limit(PAGE_SCAN).subquery()
        found = select(jobs.c.id).join(scanned, scanned.c.id == jobs.c.id).order_by(scanned.c.id.desc())
        ids = self._ids(connection, found, wanted)
        if len(ids) == wanted.limit:
            return ids, ids[-1]
        count, last = connection.execute(select(func.count(), func.min(scanned.c.id)).select_from(scanned)).one()
        return ids, last if count == PAGE_SCAN else None

    def _ids(self, connection: Connection, found: Select[tuple[int]], wanted: JobFilter) -> list[int]:
        found = found.where(jobs.c.tenant_id == wanted.tenant_id)
        if wanted.queue_ids is not None:
            found = found.where(jobs.c.queue_id.in_(wanted.queue_ids))
        if wanted.state is not None:
            # A sum here too: a partial index of all queued jobs may look short to a planner without statistics.
            found = found.where(jobs.c.state + 0 == literal_column(str(int(wanted.state))))
        ids: list[int] = list(connection.execute(found.limit(wanted.limit)).scalars())  # type: ignore[arg-type]
        return ids


def _by_id(before_id: int) -> Select[tuple[int]]:
    return select(jobs.c.id).where(jobs.c.id < before_id)


def _by_label(wanted: JobFilter, before_id: int) -> Select[tuple[int]]:
    labelled = select(job_labels.c.job_id.label("id")).where(job_labels.c.tenant_id == wanted.tenant_id)
    return labelled.where(job_labels.c.label == wanted.label, job_labels.c.job_id < before_id)
