"""The job store on Postgres: hot statements by the driver, everything else shared with SQLite."""

from __future__ import annotations

import sqlalchemy as sa

from batchyard.store.base import BulkView
from batchyard.store.postgres.claims import Claiming
from batchyard.store.postgres.finishing import Finishing
from batchyard.store.postgres.folding import Folding
from batchyard.store.postgres.reading import Reading
from batchyard.store.postgres.submission import Submitting


class PostgresStore(Submitting, Claiming, Finishing, Reading, Folding):
    """A `JobStore` in a PostgreSQL database, 14 or newer. The schema must be there."""

    def pause_bulk(self, bulk_id: int, *, tenant_id: int, paused: bool) -> BulkView:
        """See `JobStore.pause_bulk`."""
        view = super().pause_bulk(bulk_id, tenant_id=tenant_id, paused=paused)
        if paused:
            self._await_claims()
        return view

    def set_queue_paused(self, queue_id: int, *, paused: bool) -> None:
        """See `JobStore.set_queue_paused`. As with bulks, no claim succeeds after a pause has returned."""
        super().set_queue_paused(queue_id, paused=paused)
        if paused:
            self._await_claims()

    def _await_claims(self) -> None:
        """Return when every claim has ended that may not have seen what was committed before this call.

        Claims lock their consumer's row, so they end before this lock is given; later ones see the commit.
        """
        with self._writing() as connection:
            connection.execute(sa.text("LOCK TABLE consumers IN EXCLUSIVE MODE"))
