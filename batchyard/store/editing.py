"""What the API changes in single jobs."""

from __future__ import annotations

from sqlalchemy import Connection

from batchyard.errors import Conflict
from batchyard.jobs import State
from batchyard.store.base import JobView
from batchyard.store.deltas import Deltas
from batchyard.store.moves import Moves
from batchyard.store.sql import unknown_job
from batchyard.store.tables import jobs
from batchyard.store.views import job_view, view_query

_WITHDRAWABLE = {State.QUEUED, State.WAITING}


class Editing(Moves):
    """Cancel, amend and forget."""

    def cancel(self, job_id: int, *, tenant_id: int) -> JobView:
        """See `JobStore.cancel`."""
        deltas = Deltas()
        with self._writing() as connection:
            row = self._lock_job(connection, job_id, tenant_id=tenant_id)
            if row.state in _WITHDRAWABLE:
                now = self._database_ms(connection)
                done = {"finished_at": now, "cancel_requested": True}
                self._move(connection, [row], State.CANCELLED, deltas=deltas, **done)
            elif row.state == State.RUNNING:
                connection.execute(jobs.update().where(jobs.c.id == job_id).values(cancel_requested=True))
            self._record(connection, deltas)
            return self._view(connection, job_id)

    def amend(
        self, job_id: int, *, tenant_id: int, priority: int | None, deadline_ms: int | None, start_by_ms: int | None
    ) -> JobView:
        """See `JobStore.amend`."""
        deltas = Deltas()
        with self._writing() as connection:
            row = self._lock_job(connection, job_id, tenant_id=tenant_id)
            if row.state != State.QUEUED:
                raise Conflict(f"only a queued job can be changed; this one is {State(row.state).word}")
            changed: dict[str, int] = {}
            if priority is not None:
                changed["priority"] = priority if row.priority >= 0 else -1 - priority
            if deadline_ms is not None:
                changed["deadline"] = deadline_ms
            if start_by_ms is not None:
                changed["start_by"] = start_by_ms
            if changed:
                connection.execute(jobs.update().where(jobs.c.id == job_id).values(changed))
                deltas.move(row, State.QUEUED, priority=changed.get("priority"), deadline_ms=deadline_ms)
            self._record(connection, deltas)
            return self._view(connection, job_id)

    def forget(self, job_id: int, *, tenant_id: int) -> None:
        """See `JobStore.forget`."""
        deltas = Deltas()
        with self._writing() as connection:
            row = self._lock_job(connection, job_id, tenant_id=tenant_id)
            if not State(row.state).is_terminal:
                raise Conflict(f"only a finished job can be deleted; this one is {State(row.state).word}")
            now = self._database_ms(connection)
            unused = self._delete(connection, [row], deltas=deltas, now_ms=now)
            self._give_up(connection, unused, now_ms=now)
            self._record(connection, deltas)

    def _view(self, connection: Connection, job_id: int) -> JobView:
        for row in connection.execute(view_query(results=True).where(jobs.c.id == job_id)):
            return job_view(row)
        raise unknown_job()
