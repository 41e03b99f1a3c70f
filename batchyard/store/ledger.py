"""The sums: backlog and usage, and the recount that proves them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import func, select

from batchyard.jobs import BUCKET_MS, State
from batchyard.store.base import BacklogRow, UsageRow
from batchyard.store.deltas import retired
from batchyard.store.sql import SqlStore
from batchyard.store.tables import BACKLOG, USAGE, Ledger, jobs, payloads

IS_UNUSED = payloads.c.jobs == sa.literal_column("0")
"""As in the partial index of payloads."""


class Ledgers(SqlStore):
    """Readers of the ledgers; see `Deltas` for what writes them."""

    def backlog(self, *, queue_ids: Sequence[int] | None = None) -> list[BacklogRow]:
        """See `JobStore.backlog`."""
        rows = self._sums(BACKLOG).subquery()
        statement = select(rows).where(rows.c.state >= 0, sa.or_(rows.c.jobs != 0, rows.c.cost != 0))
        if queue_ids is not None:
            statement = statement.where(rows.c.queue_id.in_(queue_ids))
        with self._reading() as connection:
            return [_backlog_row(row) for row in connection.execute(statement)]

    def finished_jobs(self) -> dict[int, int]:
        """See `JobStore.finished_jobs`."""
        rows = self._sums(BACKLOG).subquery()
        ends = [int(state) for state in (State.SUCCEEDED, State.FAILED)]
        ends += [retired(state) for state in (State.SUCCEEDED, State.FAILED)]
        counted = select(rows.c.queue_id, func.sum(rows.c.jobs)).where(rows.c.state.in_(ends)).group_by(rows.c.queue_id)
        with self._reading() as connection:
            return {queue_id: int(count) for queue_id, count in connection.execute(counted)}

    def arrivals(self) -> dict[int, tuple[int, int]]:
        """See `JobStore.arrivals`. Every change of state leaves the sum over all states alone."""
        rows = self._sums(BACKLOG).subquery()
        sums = select(rows.c.queue_id, func.sum(rows.c.jobs), func.sum(rows.c.cost)).group_by(rows.c.queue_id)
        with self._reading() as connection:
            return {queue_id: (int(count), int(cost)) for queue_id, count, cost in connection.execute(sums)}

    def recount(self) -> list[BacklogRow]:
        """See `JobStore.recount`."""
        terminal = jobs.c.state >= int(State.SUCCEEDED)
        minutes = (jobs.c.deadline + (BUCKET_MS - 1)) // BUCKET_MS
        bucket = sa.case((sa.or_(terminal, jobs.c.deadline.is_(None)), 0), else_=minutes).label("bucket")
        keys = (jobs.c.queue_id, jobs.c.tenant_id, jobs.c.priority, jobs.c.state, bucket)
        counted = select(*keys, func.count(), func.sum(jobs.c.cost_estimate)).group_by(*keys)
        with self._reading() as connection:
            return [_backlog_row(row) for row in connection.execute(counted)]

    def usage(self, *, since_hour: int = 0) -> list[UsageRow]:
        """See `JobStore.usage`."""
        rows = self._sums(USAGE).subquery()
        with self._reading() as connection:
            found = connection.execute(select(rows).where(rows.c.hour >= since_hour)).all()
        named = [*USAGE.keys, *USAGE.sums]
        return [UsageRow(**{name: int(value) for name, value in zip(named, row, strict=True)}) for row in found]

    def stored_bytes(self) -> int:
        """See `JobStore.stored_bytes`."""
        rows = self._sums(USAGE).subquery()
        kept = func.sum(rows.c.input_bytes + rows.c.result_bytes - rows.c.retired_bytes)
        with self._reading() as connection:
            return int(connection.execute(select(func.coalesce(kept, 0))).scalar_one())

    def stored_bytes_by_tenant(self) -> dict[int, int]:
        """See `JobStore.stored_bytes_by_tenant`."""
        rows = self._sums(USAGE).subquery()
        kept = func.sum(rows.c.input_bytes + rows.c.result_bytes - rows.c.retired_bytes)
        unused = select(payloads.c.tenant_id, func.sum(payloads.c.size)).where(IS_UNUSED).group_by(payloads.c.tenant_id)
        total: dict[int, int] = {}
        with self._reading() as connection:
            for statement in (select(rows.c.tenant_id, kept).group_by(rows.c.tenant_id), unused):
                for tenant_id, size in connection.execute(statement):
                    total[tenant_id] = total.get(tenant_id, 0) + int(size)
        return total


def plain_sums(ledger: Ledger) -> sa.Select[tuple[int, ...]]:
    """The sums of a ledger that is updated in place."""
    return select(ledger.totals)


def folded_sums(ledger: Ledger) -> sa.Select[tuple[int, ...]]:
    """The sums of a ledger whose deltas wait to be folded; what is not folded yet is added on the way."""
    names = [*ledger.keys, *ledger.sums]
    parts = [select(*(table.c[name] for name in names)) for table in (ledger.totals, ledger.deltas)]
    both = sa.union_all(*parts).subquery()
    keys = [both.c[key] for key in ledger.keys]
    sums = [sa.cast(func.sum(both.c[name]), sa.BigInteger).label(name) for name in ledger.sums]
    return select(*keys, *sums).group_by(*keys)


def _backlog_row(row: Sequence[Any]) -> BacklogRow:
    queue_id, tenant_id, priority, state, bucket, count, cost = row
    return BacklogRow(
        queue_id=queue_id,
        tenant_id=tenant_id,
        priority=priority,
        state=State(state),
        bucket=int(bucket),
        jobs=int(count),
        cost=int(cost),
    )
