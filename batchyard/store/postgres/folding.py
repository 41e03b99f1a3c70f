"""The ledgers on Postgres: transactions append deltas, the leader folds them into sums and numbers the flushes."""

from __future__ import annotations

from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from batchyard.store.bulks import pack_flushes
from batchyard.store.deltas import Deltas
from batchyard.store.ledger import folded_sums
from batchyard.store.postgres.session import Session, int8
from batchyard.store.postgres.statement import Statement
from batchyard.store.tables import BACKLOG, BULK_COUNTS, USAGE, Ledger, flushes

PENDING = Statement("SELECT EXISTS (SELECT FROM flushes WHERE seq IS NULL)")

LOCK_NUMBERS = sa.text("""
INSERT INTO counters (name, value) VALUES ('flushes', 0) ON CONFLICT (name) DO UPDATE SET value = counters.value""")
"""Whoever numbers next waits here, and then sees all that this one did."""

NUMBER = sa.text("""
WITH new AS MATERIALIZED (
    SELECT id, row_number() OVER (ORDER BY id) AS place FROM (
        SELECT id FROM flushes WHERE seq IS NULL ORDER BY id LIMIT :limit
    ) n
),
numbered AS (
    UPDATE flushes f SET seq = c.value + n.place FROM new n, counters c WHERE f.id = n.id AND c.name = 'flushes'
)
UPDATE counters SET value = value + (SELECT count(*) FROM new) WHERE name = 'flushes'
RETURNING (SELECT count(*) FROM new)""")
"""Gives the next numbers to flushes that have none. They become visible in order, so no cursor ever skips one."""


@cache
def fold(totals: str, deltas: str, keys: tuple[str, ...], sums: tuple[str, ...]) -> Statement:
    """Moves deltas into their sums; answers with their number."""
    by, of = ", ".join(keys), ", ".join(sums)
    added = ", ".join(f"{name} = {totals}.{name} + excluded.{name}" for name in sums)
    return Statement(f"""
        WITH gone AS (
            DELETE FROM {deltas} WHERE delta_id = ANY(ARRAY(
                SELECT delta_id FROM {deltas} ORDER BY delta_id LIMIT %(limit)s
            )) RETURNING {by}, {of}
        ),
        folded AS (
            INSERT INTO {totals} ({by}, {of})
            SELECT {by}, {", ".join(f"sum({name})" for name in sums)} FROM gone GROUP BY {by} ORDER BY {by}
            ON CONFLICT ({by}) DO UPDATE SET {added}
        )
        SELECT count(*) FROM gone""")


DROP_EMPTY = Statement("""
WITH gone AS (DELETE FROM backlog WHERE jobs = 0 AND cost = 0 RETURNING 1) SELECT count(*) FROM gone""")
"""Deletes sums that are zero, or the backlog would grow by the minutes of past deadlines."""


class Folding(Session):
    """Appends, sums and folds."""

    def _record(self, connection: Connection, deltas: Deltas) -> None:
        rows = ((BACKLOG, deltas.backlog_rows()), (BULK_COUNTS, deltas.bulk_rows()), (USAGE, deltas.usage_rows()))
        for ledger, changed in rows:
            if changed:
                names = [*ledger.keys, *ledger.sums]
                appended = [dict(zip(names, row, strict=True)) for row in changed]
                connection.execute(ledger.deltas.insert(), appended)
        flushed = [{"bulk_id": bulk_id, "job_ids": packed} for bulk_id, packed in pack_flushes(deltas.flushed)]
        if flushed:
            connection.execute(flushes.insert(), flushed)
        if deltas.ended:
            self._announce(connection, deltas.ended)

    def _sums(self, ledger: Ledger) -> sa.Select[Any]:
        return folded_sums(ledger)

    def fold(self, *, limit: int) -> int:
        """See `JobStore.fold`. Each ledger and the numbering is a transaction of its own."""
        moved = self._number_flushes(limit)
        for ledger in (BACKLOG, BULK_COUNTS, USAGE):
            names = (ledger.totals.name, ledger.deltas.name, ledger.keys, ledger.sums)
            ((folded,),) = self._run(fold(*names), limit=int8(limit))
            moved += int(folded)
        if moved:
            self._run(DROP_EMPTY)
        return moved

    def _number_flushes(self, limit: int) -> int:
        ((pending,),) = self._run(PENDING)
        if not pending:
            return 0
        with self._writing() as connection:
            connection.execute(LOCK_NUMBERS)
            return int(connection.execute(NUMBER, {"limit": limit}).scalar_one())
