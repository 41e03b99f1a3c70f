"""What the leader remembers of one queue: the tickets that are out, and how far each line has been ticketed."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from batchyard.broker import TICKET_JOBS
from batchyard.jobs import runs
from batchyard.scheduling import FairShare

MAX_LEFT_JOBS = 200_000
"""Of the jobs whose tickets have left the broker so many are remembered at most; the oldest are claimed long since."""

LineKey = tuple[int, int]
"""Tenant and priority."""


class _Ticket(NamedTuple):
    ids: Sequence[int]
    published_at: float
    floor: Mapping[LineKey, int]
    """The cursors before this ticket: what stands below them went out in earlier ones."""


class _Left(NamedTuple):
    ids: Sequence[int]
    until: float


class Outstanding:
    """The ticket state of one queue. In memory only: a new leader begins with an empty one. Owned by one thread.

    Consumers take the oldest tickets first, so of those published the newest are still out, as many as the broker's
    queue holds.
    """

    def __init__(self, *, remember_seconds: float) -> None:
        self.cursors: dict[LineKey, int] = {}
        self.share = FairShare()
        self.known: set[int] = set()
        """Jobs with a ticket out, or whose ticket left the broker less than `remember_seconds` ago."""
        self._remember = remember_seconds
        self._tickets: deque[_Ticket] = deque()
        self._left: deque[_Left] = deque()
        self._jobs = 0
        self._left_jobs = 0
        self._foreign_tickets = 0
        self.foreign_ticket_jobs = float(TICKET_JOBS)
        """Jobs in a ticket that somebody else published."""

    @property
    def jobs(self) -> int:
        """Jobs ticketed and, as far as the broker's depth tells, unclaimed."""
        return self._jobs + round(self._foreign_tickets * self.foreign_ticket_jobs)

    def publish(self, ids: Sequence[int], *, now: float, cursors: Mapping[LineKey, int] | None = None) -> None:
        """Note tickets that were published, cut as the broker cuts them, and the cursors that they bring."""
        floor = dict(self.cursors)
        for piece in runs(ids, TICKET_JOBS):
            self._tickets.append(_Ticket(piece, now, floor))
        self._jobs += len(ids)
        self.known.update(ids)
        if cursors:
            self.cursors.update(cursors)

    def overlook(self, ids: Sequence[int], *, now: float) -> None:
        """Note jobs that somebody else has ticketed."""
        if ids:
            self.known.update(ids)
            self._leave(ids, now)

    def trim(self, depth: int, *, now: float, settled_before: float) -> int:
        """Drop the oldest tickets beyond the depth of the broker's queue; returns the jobs in them.

        Tickets not published before `settled_before` stay: the depth may not count them yet.
        """
        dropped = 0
        while len(self._tickets) > depth and self._tickets[0].published_at <= settled_before:
            ids = self._tickets.popleft().ids
            dropped += len(ids)
            self._leave(ids, now)
        self._jobs -= dropped
        self._foreign_tickets = max(0, depth - len(self._tickets))
        self._forget(now)
        return dropped

    def below(self) -> dict[LineKey, int]:
        """For each line the id below which no ticket is out any more."""
        floor = self._tickets[0].floor if self._tickets else self.cursors
        return {key: job_id + 1 for key, job_id in floor.items()}

    def set_back(self, job_id: int) -> None:
        """Look again at everything from this job on; what has a ticket is known and passed over."""
        self.cursors = {key: min(cursor, job_id - 1) for key, cursor in self.cursors.items()}

    def _leave(self, ids: Sequence[int], now: float) -> None:
        self._left.append(_Left(ids, now + self._remember))
        self._left_jobs += len(ids)

    def _forget(self, now: float) -> None:
        while self._left and (self._left[0].until <= now or self._left_jobs > MAX_LEFT_JOBS):
            ids = self._left.popleft().ids
            self._left_jobs -= len(ids)
            self.known.difference_update(ids)
