"""A bulk's results out of the store, page by page in the order of completion."""

from __future__ import annotations

from batchyard.jobs import ResultRow
from batchyard.results import Frame
from batchyard.store.base import BulkView, JobStore

PAGE_JOBS = 4_000
"""Results gathered in one read at most; a few more where the last flush is larger."""
PAGE_BYTES = 1024 * 1024
"""Of results gathered in one read, judged by those before; whoever does not read on makes its server hold some."""
PAGE_GROWTH = 8
"""How many times as many results a page may have as the one before: those that follow may be larger."""


class ResultPages:
    """Where one reader of a bulk stands. Owned by whoever reads, one call at a time."""

    def __init__(self, store: JobStore, *, bulk_id: int, tenant_id: int, after: int) -> None:
        self.cursor = after
        self._store = store
        self._bulk_id = bulk_id
        self._tenant_id = tenant_id
        self._told: int | None = None
        self._limit = 1

    def next(self) -> Frame | None:
        """The next results, or news of the bulk: that it has settled, said once, or finished. None: nothing new."""
        rows = self._look()
        if rows:
            return Frame(self.cursor, False, rows)
        bulk = self._store.get_bulk(self._bulk_id, tenant_id=self._tenant_id)
        is_news = bulk.jobs != self._told or bulk.is_finished
        if not is_news or not _has_ended(bulk) or self._store.has_unnumbered(self._bulk_id):
            return None
        # What ended between the two looks.
        rows = self._look()
        if rows:
            return Frame(self.cursor, False, rows)
        self._told = bulk.jobs
        return Frame(self.cursor, bulk.is_finished, (), bulk.jobs)

    def _look(self) -> list[ResultRow]:
        rows = self._store.bulk_results(self._bulk_id, after_seq=self.cursor, limit=self._limit)
        if rows:
            self.cursor = rows[-1].seq
            size = sum([len(row.body or b"") for row in rows])
            fitting = PAGE_BYTES * len(rows) // max(size, 1)
            self._limit = max(1, min(fitting, PAGE_GROWTH * len(rows), PAGE_JOBS))
        return rows


def _has_ended(bulk: BulkView) -> bool:
    """Every job of it, so far. Jobs that were added while the bulk was read count among the states alone."""
    ended = sum(jobs for state, jobs in bulk.counts.items() if state.is_terminal)
    return ended == sum(bulk.counts.values()) == bulk.jobs
