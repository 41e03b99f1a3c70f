"""The fronts of the lines: what the dispatcher and the idle claim order."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Connection, Select, bindparam, cast, func, select

from batchyard.forecast import LineLoad, front_jobs, jobs_before
from batchyard.jobs import State
from batchyard.store.base import Candidate, Line
from batchyard.store.sql import IS_QUEUED, SqlStore
from batchyard.store.tables import BACKLOG, jobs, queues, tenants

_PAUSED = select(queues.c.paused).where(queues.c.id == bindparam("queue_id"))

_NEAR = (
    select(jobs.c.priority, jobs.c.id, jobs.c.cost_estimate, jobs.c.start_by, jobs.c.ticketed_at)
    .where(IS_QUEUED, jobs.c.start_by.is_not(None), jobs.c.queue_id == bindparam("queue_id"))
    .where(jobs.c.tenant_id == bindparam("tenant_id"), jobs.c.start_by < bindparam("before"), jobs.c.priority >= 0)
    .order_by(jobs.c.start_by)
    .limit(bindparam("limit"))
)
"""Jobs whose latest safe start is near."""

MOST_READS = 3
"""Of the fronts in one look: where lines end sooner than the backlog says, the others are read further."""

Key = tuple[int, int]
"""Tenant and priority: a line of a queue."""


class LineKey(NamedTuple):
    """Part of a line: up to `limit` of its jobs, after the id `bound` (or, for stragglers, below it)."""

    tenant_id: int
    priority: int
    bound: int
    limit: int


class LineSum(NamedTuple):
    """What the backlog knows of a line: its jobs, their cost, and their last deadline bucket (0: no deadlines)."""

    jobs: int
    cost: int
    last_bucket: int
    weight: float
    """Of its tenant."""


class Standing(NamedTuple):
    """A queued job within its line."""

    queue_id: int
    tenant_id: int
    priority: int
    ahead: int
    """Jobs before it, counted up to a limit."""
    first_id: int
    last_id: int
    """Of its line, where those before it reach the limit; else any of those counted."""


class Order(SqlStore):
    """Readers of the partial indexes on queued jobs; none of them touches more rows than it returns."""

    # --- what a dialect gives ---

    @abstractmethod
    def _fronts(self, connection: Connection, queue_id: int, keys: Sequence[LineKey]) -> list[list[Candidate]]:
        """For each key queued jobs with ids above its bound, ascending."""

    @abstractmethod
    def _standing(self, connection: Connection, job_id: int, *, limit: int) -> Standing | None:
        """Where a job stands, counting up to `limit` before it; None where it is not queued."""

    @abstractmethod
    def _oldest_ms(self, connection: Connection, queue_id: int, lines: Sequence[Key]) -> int | None:
        """When the oldest of the first jobs of these lines was created; None where none is queued any more."""

    # --- shared ---

    def head(
        self, queue_id: int, *, after: Mapping[tuple[int, int], int], jobs: int, urgent_before_ms: int
    ) -> list[Line]:
        """See `JobStore.head`."""
        with self._reading() as connection:
            if connection.execute(_PAUSED, {"queue_id": queue_id}).scalar() is not False:
                return []
            lines = self._lines(connection, queue_id)
            fronts = _Fronts(lines, after=after, jobs=jobs)
            for _ in range(MOST_READS):
                wanted = fronts.wanted()
                if not wanted:
                    break
                fronts.extend(wanted, self._fronts(connection, queue_id, wanted))
            urgent = self._urgent(connection, queue_id, lines, before_ms=urgent_before_ms, jobs=jobs)
        return [
            Line(
                tenant_id=key[0],
                weight=line.weight,
                priority=key[1],
                candidates=fronts.shown[key],
                urgent=urgent.get(key, ()),
                has_more=key in fronts.going_on,
            )
            for key, line in lines.items()
            if fronts.shown[key] or key in urgent
        ]

    def position(self, job_id: int, *, limit: int = 1000) -> int | None:
        """See `JobStore.position`."""
        with self._reading() as connection:
            job = self._standing(connection, job_id, limit=limit)
            if job is None or job.priority < 0:
                return None
            lines = self._lines(connection, job.queue_id)
        line = lines.get((job.tenant_id, job.priority))
        if line is None:
            return job.ahead
        own = job.ahead
        if own >= limit:
            # Ids tell time, so where its id lies between the first and the last says about how much is before it.
            share = (job_id - job.first_id) / max(1, job.last_id - job.first_id)
            own = max(limit, int(line.jobs * share))
        before = jobs_before(_loads(lines), tenant_id=job.tenant_id, priority=job.priority, own=own)
        return int(before)

    def oldest_queued_ms(self) -> dict[int, int]:
        """See `JobStore.oldest_queued_ms`."""
        oldest: dict[int, int] = {}
        with self._reading() as connection:
            for queue_id, lines in self._all_lines(connection).items():
                created = self._oldest_ms(connection, queue_id, list(lines))
                if created is not None:
                    oldest[queue_id] = created
        return oldest

    def _lines(self, connection: Connection, queue_id: int) -> dict[Key, LineSum]:
        """What is queued of a queue, by line, from the backlog; held jobs left out."""
        return _by_queue(connection, self._sums_of_one, {"queue_id": queue_id}).get(queue_id, {})

    def _all_lines(self, connection: Connection) -> dict[int, dict[Key, LineSum]]:
        return _by_queue(connection, self._sums_of_lines, {})

    @cached_property
    def _sums_of_one(self) -> Select[Any]:
        return self._sums_of_lines.where(self._queued.c.queue_id == bindparam("queue_id"))

    @cached_property
    def _sums_of_lines(self) -> Select[Any]:
        """Composed once: that takes longer than to run it."""
        rows = self._queued
        keys = (rows.c.queue_id, rows.c.tenant_id, rows.c.priority)
        counted = cast(func.sum(rows.c.jobs), BigInteger)
        cost = cast(func.sum(rows.c.cost), BigInteger)
        weight = func.coalesce(func.max(tenants.c.weight), 1.0)
        return (
            select(*keys, counted, cost, func.max(rows.c.bucket), weight)
            .select_from(rows.outerjoin(tenants, tenants.c.id == rows.c.tenant_id))
            .where(rows.c.state == int(State.QUEUED), rows.c.priority >= 0, rows.c.jobs != 0)
            .group_by(*keys)
            .having(func.sum(rows.c.jobs) > 0)
            .order_by(*keys)
        )

    @cached_property
    def _queued(self) -> Any:
        return self._sums(BACKLOG).subquery()

    def _urgent(
        self,
        connection: Connection,
        queue_id: int,
        lines: Mapping[Key, LineSum],
        *,
        before_ms: int,
        jobs: int,
    ) -> dict[Key, list[Candidate]]:
        """Per line jobs whose latest safe start is near, soonest first; of each tenant as many as are likely to go."""
        pressing = {tenant_id for (tenant_id, _), line in lines.items() if line.last_bucket}
        if not pressing:
            return {}
        limits: Counter[int] = Counter()
        for (tenant_id, _), size in front_jobs(_loads(lines), jobs=jobs).items():
            limits[tenant_id] += size
        found: dict[Key, list[Candidate]] = {}
        for tenant_id in sorted(pressing):
            values = {"queue_id": queue_id, "tenant_id": tenant_id, "before": before_ms, "limit": limits[tenant_id]}
            for priority, *candidate in connection.execute(_NEAR, values):
                found.setdefault((tenant_id, priority), []).append(Candidate(*candidate))
        return found


class _Fronts:
    """How far each line has been read, and how far it should be."""

    def __init__(self, lines: Mapping[Key, LineSum], *, after: Mapping[Key, int], jobs: int) -> None:
        self.shown: dict[Key, list[Candidate]] = {key: [] for key in lines}
        self.going_on = set(lines)
        """Lines whose end has not been seen."""
        self._loads = {(load.tenant_id, load.priority): load for load in _loads(lines)}
        self._after = after
        self._jobs = jobs

    def wanted(self) -> list[LineKey]:
        """What to read next: nothing once as many are shown as are to be chosen, or no line goes on."""
        if sum(map(len, self.shown.values())) >= self._jobs:
            return []
        sizes = front_jobs(self._loads.values(), jobs=self._jobs)
        return [
            LineKey(*key, shown[-1].id if shown else self._after.get(key, 0), sizes[key] - len(shown))
            for key, shown in self.shown.items()
            if key in self.going_on and sizes[key] > len(shown)
        ]

    def extend(self, keys: Sequence[LineKey], found: Sequence[Sequence[Candidate]]) -> None:
        """Take in what was read. Jobs behind the bounds count in the backlog too: a line's end corrects it."""
        for (tenant_id, priority, _, limit), more in zip(keys, found, strict=True):
            key = (tenant_id, priority)
            shown = self.shown[key]
            shown += more
            if len(more) < limit:
                self.going_on.discard(key)
                load = self._loads.pop(key)
                if shown:
                    self._loads[key] = load._replace(jobs=len(shown), cost=sum(one.cost for one in shown))


def _loads(lines: Mapping[Key, LineSum]) -> list[LineLoad]:
    return [LineLoad(t, p, line.weight, line.jobs, line.cost) for (t, p), line in lines.items()]


def _by_queue(
    connection: Connection, statement: Select[Any], values: Mapping[str, object]
) -> dict[int, dict[Key, LineSum]]:
    found: dict[int, dict[Key, LineSum]] = {}
    for queue_id, tenant_id, priority, *sums in connection.execute(statement, values):
        found.setdefault(queue_id, {})[tenant_id, priority] = LineSum(*sums)
    return found
