"""Jobs still queued although the leader has been past them: which of them to ticket (again), and when. Pure."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

CONFIRM_SECONDS = 0.25
"""A job first seen may be on its way to being claimed, or its ticket be published by whoever requeued it."""

MOST_DELAY_SECONDS = 600.0


@dataclass(slots=True)
class _Straggler:
    due_at: float
    delay: float
    seen_at: float


class Stragglers:
    """The stragglers of one queue. Owned by the dispatcher's thread.

    A straggler that nobody is known to have ticketed (it was committed late, freed, requeued, or its ticket was lost
    long ago) is due when it is seen a second time; after every ticket it gets, its delay doubles.
    """

    def __init__(self, *, first_delay_seconds: float) -> None:
        self._first_delay = first_delay_seconds
        self._seen: dict[int, _Straggler] = {}

    def due(self, ids: Sequence[int], *, known: Set[int], now: float) -> list[int]:
        """Of the ids now seen, those to ticket now. `known` are those with a ticket out, or lately out."""
        due = []
        for job_id in ids:
            straggler = self._seen.get(job_id)
            if straggler is not None:
                straggler.seen_at = now
            if job_id in known:
                continue
            if straggler is None:
                self._seen[job_id] = _Straggler(now + CONFIRM_SECONDS, self._first_delay, now)
            elif now >= straggler.due_at:
                straggler.due_at = now + straggler.delay
                straggler.delay = min(straggler.delay * 2, MOST_DELAY_SECONDS)
                due.append(job_id)
        self._forget(now)
        return due

    def _forget(self, now: float) -> None:
        """Drop those no longer seen: they were claimed."""
        gone = [job_id for job_id, one in self._seen.items() if now - one.seen_at > one.delay]
        for job_id in gone:
            del self._seen[job_id]
