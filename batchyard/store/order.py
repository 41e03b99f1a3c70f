"""The fronts of the lines: what the dispatcher and the idle claim order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, func, select

from batchyard.jobs import State
from batchyard.position import LineLoad, jobs_before
from batchyard.store.base import Candidate, Line
from batchyard.store.sql import IS_QUEUED, SqlStore
from batchyard.store.tables import BACKLOG, jobs, queues, tenants

_CANDIDATE = (jobs.c.id, jobs.c.cost_estimate, jobs.c.start_by, jobs.c.ticketed_at)


class LineKey(NamedTuple):
    """A line, and the id after which (or, for stragglers, below which) it is read."""

    tenant_id: int
    priority: int
    bound: int


class LineSum(NamedTuple):
    """What the backlog knows of a line: its jobs, their cost, and their last deadline bucket (0: no deadlines)."""

    jobs: int
    cost: int
    last_bucket: int


class Standing(NamedTuple):
    """A queued job within its line."""

    queue_id: int
    tenant_id: int
    priority: int
    ahead: int
    """Jobs before it, counted up to a limit."""
    share: float | None
    """About how much of the line those are, by ids; None where they are all counted."""


class Order(SqlStore):
    """Readers of the partial indexes on queued jobs; none of them touches more rows than it returns."""

    def head(
        self, queue_id: int, *, after: Mapping[tuple[int, int], int], limit: int, urgent_before_ms: int
    ) -> list[Line]:
        """See `JobStore.head`."""
        with self._reading() as connection:
            if connection.execute(select(queues.c.paused).where(queues.c.id == queue_id)).scalar() is not False:
                return []
            lines = self._lines(connection, queue_id)
            keys = [LineKey(t, p, after.get((t, p), 0)) for t, p in lines]
            fronts = self._fronts(connection, queue_id, keys, limit=limit)
            urgent = self._urgent(connection, queue_id, lines, before_ms=urgent_before_ms, limit=limit)
            weights = self._weights(connection)
        return [
            Line(
                tenant_id=key.tenant_id,
                weight=weights.get(key.tenant_id, 1.0),
                priority=key.priority,
                candidates=front,
                urgent=urgent.get((key.tenant_id, key.priority), ()),
            )
            for key, front in zip(keys, fronts, strict=True)
            if front or (key.tenant_id, key.priority) in urgent
        ]

    def stragglers(self, queue_id: int, *, below: Mapping[tuple[int, int], int], limit: int) -> list[int]:
        """See `JobStore.stragglers`."""
        found: list[int] = []
        with self._reading() as connection:
            for (tenant_id, priority), bound in below.items():
                statement = (
                    select(jobs.c.id)
                    .where(IS_QUEUED, jobs.c.queue_id == queue_id, jobs.c.tenant_id == tenant_id)
                    .where(jobs.c.priority == priority, jobs.c.id < bound)
                    .order_by(jobs.c.id)
                    .limit(limit)
                )
                found.extend(connection.execute(statement).scalars())
        return sorted(found)

    def position(self, job_id: int, *, limit: int = 1000) -> int | None:
        """See `JobStore.position`."""
        with self._reading() as connection:
            standing = self._standing(connection, job_id, limit=limit)
            if standing is None or standing.priority < 0:
                return None
            lines = self._lines(connection, standing.queue_id)
            weights = self._weights(connection)
        key = (standing.tenant_id, standing.priority)
        own = standing.ahead
        if key not in lines:
            return own
        if standing.share is not None:
            own = max(limit, int(lines[key].jobs * standing.share))
        loads = [LineLoad(t, p, weights.get(t, 1.0), line.jobs, line.cost) for (t, p), line in lines.items()]
        return int(jobs_before(loads, tenant_id=standing.tenant_id, priority=standing.priority, own=own))

    def oldest_queued_ms(self) -> dict[int, int]:
        """See `JobStore.oldest_queued_ms`."""
        oldest: dict[int, int] = {}
        with self._reading() as connection:
            for queue_id, lines in self._all_lines(connection).items():
                firsts = self._fronts(connection, queue_id, [LineKey(t, p, -1) for t, p in lines], limit=1)
                ids = [front[0].id for front in firsts if front]
                if ids:
                    created = select(func.min(jobs.c.created_at)).where(self._among(jobs.c.id, ids))
                    oldest[queue_id] = connection.execute(created).scalar_one()
        return oldest

    def _weights(self, connection: Connection) -> dict[int, float]:
        return {row.id: row.weight for row in connection.execute(select(tenants.c.id, tenants.c.weight))}

    def _standing(self, connection: Connection, job_id: int, *, limit: int) -> Standing | None:
        """Where a job stands, counting up to `limit` before it; None where it is not queued. Dialects may be faster."""
        wanted = select(jobs.c.queue_id, jobs.c.tenant_id, jobs.c.priority)
        job = connection.execute(wanted.where(jobs.c.id == job_id, jobs.c.state == int(State.QUEUED))).one_or_none()
        if job is None:
            return None
        line = and_(
            IS_QUEUED,
            jobs.c.queue_id == job.queue_id,
            jobs.c.tenant_id == job.tenant_id,
            jobs.c.priority == job.priority,
        )
        before = select(jobs.c.id).where(line, jobs.c.id < job_id).limit(limit).subquery()
        ahead = connection.execute(select(func.count()).select_from(before)).scalar_one()
        return Standing(*job, ahead, None if ahead < limit else _share_before(connection, line, job_id))

    def _lines(self, connection: Connection, queue_id: int) -> dict[tuple[int, int], LineSum]:
        """(tenant, priority) → what is queued of a queue, from the backlog; held jobs left out."""
        return self._all_lines(connection, queue_id).get(queue_id, {})

    def _all_lines(
        self, connection: Connection, queue_id: int | None = None
    ) -> dict[int, dict[tuple[int, int], LineSum]]:
        rows = self._sums(BACKLOG).subquery()
        keys = (rows.c.queue_id, rows.c.tenant_id, rows.c.priority)
        counted = func.sum(rows.c.jobs)
        statement = (
            select(*keys, counted, func.sum(rows.c.cost), func.max(rows.c.bucket))
            .where(rows.c.state == int(State.QUEUED), rows.c.priority >= 0, rows.c.jobs != 0)
            .group_by(*keys)
            .having(counted > 0)
            .order_by(*keys)
        )
        if queue_id is not None:
            statement = statement.where(rows.c.queue_id == queue_id)
        found: dict[int, dict[tuple[int, int], LineSum]] = {}
        for queue, tenant_id, priority, *sums in connection.execute(statement):
            found.setdefault(queue, {})[tenant_id, priority] = LineSum(*map(int, sums))
        return found

    def _fronts(
        self, connection: Connection, queue_id: int, keys: Sequence[LineKey], *, limit: int
    ) -> list[list[Candidate]]:
        """For each line up to `limit` queued jobs with ids above its bound, ascending. A dialect may be faster."""
        fronts = []
        for key in keys:
            statement = (
                select(*_CANDIDATE)
                .where(IS_QUEUED, jobs.c.queue_id == queue_id, jobs.c.tenant_id == key.tenant_id)
                .where(jobs.c.priority == key.priority, jobs.c.id > key.bound)
                .order_by(jobs.c.id)
                .limit(limit)
            )
            fronts.append([Candidate(*row) for row in connection.execute(statement)])
        return fronts

    def _urgent(
        self,
        connection: Connection,
        queue_id: int,
        lines: Mapping[tuple[int, int], LineSum],
        *,
        before_ms: int,
        limit: int,
    ) -> dict[tuple[int, int], list[Candidate]]:
        """Per line jobs whose latest safe start is near, soonest first; up to `limit` per tenant."""
        found: dict[tuple[int, int], list[Candidate]] = {}
        near = (IS_QUEUED, jobs.c.start_by.is_not(None), jobs.c.queue_id == queue_id, jobs.c.start_by < before_ms)
        for tenant_id in sorted({tenant for (tenant, _), line in lines.items() if line.last_bucket}):
            statement = select(jobs.c.priority, *_CANDIDATE).where(*near, jobs.c.tenant_id == tenant_id)
            statement = statement.where(jobs.c.priority >= 0).order_by(jobs.c.start_by).limit(limit)
            for priority, *candidate in connection.execute(statement):
                found.setdefault((tenant_id, priority), []).append(Candidate(*candidate))
        return found


def _share_before(connection: Connection, line: ColumnElement[bool], job_id: int) -> float:
    """About how much of a long line stands before a job, by where its id lies between the first and the last."""
    first, last = (
        connection.execute(select(jobs.c.id).where(line).order_by(by).limit(1)).scalar() or job_id
        for by in (jobs.c.id, jobs.c.id.desc())
    )
    return (job_id - first) / max(1, last - first)
