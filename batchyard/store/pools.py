"""What scalers decide about pools, what people fixed by hand, what was spent, and what was learned meanwhile."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, select

from batchyard.store.base import Lease, LeaseLost, PoolDecision, PoolOverride, SpendRow
from batchyard.store.sql import SqlStore
from batchyard.store.tables import decisions, learned, leases, pool_overrides, spend


class Pools(SqlStore):
    """Small tables that the leading scaler writes and everybody reads."""

    def report_decision(self, *made: PoolDecision, lease: Lease | None = None) -> None:
        """See `JobStore.report_decision`."""
        with self._writing() as connection:
            _require(lease, connection)
            for decision in made:
                values = _decision_values(decision)
                insert = self._insert(decisions).values(pool=decision.pool, **values)
                connection.execute(insert.on_conflict_do_update(index_elements=["pool"], set_=values))

    def decisions(self) -> list[PoolDecision]:
        """See `JobStore.decisions`."""
        with self._reading() as connection:
            rows = connection.execute(select(decisions).order_by(decisions.c.pool)).all()
        return [_decision(row) for row in rows]

    def pin_pool(self, pool: str, *, replicas: int | None) -> None:
        """See `JobStore.pin_pool`."""
        self._override(pool, pinned=replicas)

    def set_pool_paused(self, pool: str, *, paused: bool) -> None:
        """See `JobStore.set_pool_paused`."""
        self._override(pool, paused=paused)

    def _override(self, pool: str, **values: object) -> None:
        insert = self._insert(pool_overrides).values(pool=pool, **values)
        with self._writing() as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=["pool"], set_=values))

    def overrides(self) -> dict[str, PoolOverride]:
        """See `JobStore.overrides`."""
        with self._reading() as connection:
            rows = connection.execute(select(pool_overrides)).all()
        return {row.pool: PoolOverride(pool=row.pool, pinned=row.pinned, is_paused=bool(row.paused)) for row in rows}

    def record_signals(
        self, *, spent: Sequence[SpendRow], learned_values: Mapping[str, Any], lease: Lease | None = None
    ) -> None:
        """See `JobStore.record_signals`."""
        with self._writing() as connection:
            _require(lease, connection)
            for row in spent:
                added = {"replica_seconds": row.replica_seconds, "dollars": row.dollars}
                insert = self._insert(spend).values(pool=row.pool, hour=row.hour, **added)
                sums = {name: spend.c[name] + value for name, value in added.items()}
                connection.execute(insert.on_conflict_do_update(index_elements=["pool", "hour"], set_=sums))
            for name, value in learned_values.items():
                kept = {"value": json.dumps(value, separators=(",", ":"))}
                noted = self._insert(learned).values(name=name, **kept)
                connection.execute(noted.on_conflict_do_update(index_elements=["name"], set_=kept))

    def spent(self, *, since_hour: int) -> list[SpendRow]:
        """See `JobStore.spent`."""
        wanted = select(spend).where(spend.c.hour >= since_hour).order_by(spend.c.pool, spend.c.hour)
        with self._reading() as connection:
            rows = connection.execute(wanted).all()
        return [
            SpendRow(pool=row.pool, hour=row.hour, replica_seconds=row.replica_seconds, dollars=row.dollars)
            for row in rows
        ]

    def learned(self, *names: str) -> dict[str, Any]:
        """See `JobStore.learned`."""
        wanted = select(learned).where(learned.c.name.in_(names)) if names else select(learned)
        with self._reading() as connection:
            rows = connection.execute(wanted).all()
        return {row.name: json.loads(row.value) for row in rows}


def _require(lease: Lease | None, connection: Connection) -> None:
    """Until the transaction ends nobody else takes it."""
    if lease is None:
        return
    held = select(leases.c.holder).where(leases.c.name == lease.name).with_for_update()
    if connection.execute(held).scalar_one_or_none() != lease.holder:
        raise LeaseLost(f"the lease {lease.name} is another's by now")


def _decision_values(made: PoolDecision) -> dict[str, Any]:
    return {
        "replicas": made.replicas,
        "live": made.live,
        "rule": made.rule,
        "reason": made.reason,
        "backlog_jobs": made.backlog_jobs,
        "backlog_seconds": made.backlog_seconds,
        "binding_deadline": made.binding_deadline_ms,
        "unmeetable_jobs": made.unmeetable_jobs,
        "zones": json.dumps(dict(made.zones)),
        "decided_at": made.decided_at_ms,
    }


def _decision(row: Row[Any]) -> PoolDecision:
    return PoolDecision(
        pool=row.pool,
        replicas=row.replicas,
        live=row.live,
        rule=row.rule,
        reason=row.reason,
        backlog_jobs=row.backlog_jobs,
        backlog_seconds=row.backlog_seconds,
        binding_deadline_ms=row.binding_deadline,
        unmeetable_jobs=row.unmeetable_jobs,
        zones=json.loads(row.zones),
        decided_at_ms=row.decided_at,
    )
