"""What a running job has come to so far, for whoever polls: one row while it lasts."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import exists, select

from batchyard.jobs import ClaimedJob
from batchyard.store.sql import IS_RUNNING, SqlStore
from batchyard.store.tables import job_progress, jobs


class Progress(SqlStore):
    """Fenced as every write of a consumer is; never part of a result."""

    def report_progress(self, notes: Sequence[tuple[ClaimedJob, bytes]], *, owner: int) -> None:
        """See `JobStore.report_progress`."""
        bodies = {(job.id, job.attempt): body for job, body in notes}
        mine = select(jobs.c.id, jobs.c.attempt).where(
            self._among(jobs.c.id, sorted(job.id for job, _ in notes)), IS_RUNNING, jobs.c.owner == owner
        )
        # Locked, or what takes a job away could come between this look and the write.
        mine = mine.order_by(jobs.c.id).with_for_update(read=True)
        with self._writing() as connection:
            rows = [
                {"job_id": row.id, "attempt": row.attempt, "body": bodies[row.id, row.attempt]}
                for row in connection.execute(mine)
                if (row.id, row.attempt) in bodies
            ]
            if rows:
                ids = [row["job_id"] for row in rows]
                connection.execute(job_progress.delete().where(self._among(job_progress.c.job_id, ids)))
                connection.execute(self._insert(job_progress), rows)

    def forget_progress(self, *, limit: int) -> int:
        """See `JobStore.forget_progress`."""
        still = exists().where(jobs.c.id == job_progress.c.job_id, jobs.c.attempt == job_progress.c.attempt, IS_RUNNING)
        over = select(job_progress.c.job_id).where(~still).limit(limit)
        if not self._finds(over):
            return 0
        with self._writing() as connection:
            return connection.execute(job_progress.delete().where(job_progress.c.job_id.in_(over))).rowcount

    def _partial(self, attempts: Sequence[tuple[int, int]]) -> dict[int, bytes]:
        """Of jobs that run, by id and attempt, what they have come to so far."""
        ids = [job_id for job_id, _ in attempts]
        told = select(job_progress).where(self._among(job_progress.c.job_id, ids))
        wanted = set(attempts)
        with self._reading() as connection:
            return {
                row.job_id: bytes(row.body) for row in connection.execute(told) if (row.job_id, row.attempt) in wanted
            }
