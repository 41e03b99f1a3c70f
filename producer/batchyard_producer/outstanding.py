"""What the leader remembers of one queue: the tickets that are out, and how far each line has been ticketed."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from batchyard.broker import TICKET_JOBS
from batchyard.jobs import runs
from batchyard.scheduling import FairShare
from batchyard.ticketing import FIRST_PREFETCH, patience_seconds

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
    since: float
    until: float
    """When to ask whether they may still be in a consumer's hands."""
    ahead: float
    """Jobs that one consumer may have had before them."""


class Outstanding:
    """The ticket state of one queue. In memory only: a new leader begins with an empty one. Owned by one thread.

    Consumers take the oldest tickets first, so of those published the newest are still out, as many as the broker's
    queue holds.
    """

    def __init__(self, *, remember_seconds: float) -> None:
        self.cursors: dict[LineKey, int] = {}
        self.share = FairShare()
        self.known: set[int] = set()
        """Jobs with a ticket out, or whose ticket has left the broker and may still be in a consumer's hands: for
        `remember_seconds`, and longer where jobs take long."""
        self.consumers = 1
        self.seconds_per_job: float | None = None
        """Of one consumer, as learned."""
        self.is_busy = False
        """Some job of the queue runs."""
        self._remember = remember_seconds
        self._doubted_at = -math.inf
        self._tickets: deque[_Ticket] = deque()
        self._left: deque[_Left] = deque()
        self._jobs = 0
        self._left_jobs = 0
        self._foreign_tickets = 0
        self.foreign_ticket_jobs = float(TICKET_JOBS)
        """Jobs in a ticket that somebody else published, on average."""

    @property
    def jobs(self) -> int:
        """Jobs ticketed and, as far as the broker's depth tells, unclaimed."""
        return self._jobs + round(self._foreign_tickets * self.foreign_ticket_jobs)

    @property
    def ticketed_seconds(self) -> float:
        """How long a job may wait after its submitter ticketed it before that ticket counts as lost."""
        return self._patience(self._jobs_before())

    def publish(
        self, ids: Sequence[int], *, ticket_jobs: int, now: float, cursors: Mapping[LineKey, int] | None = None
    ) -> None:
        """Note tickets that were published, of at most so many jobs each, and the cursors that they bring."""
        floor = dict(self.cursors)
        for piece in runs(ids, ticket_jobs):
            self._tickets.append(_Ticket(piece, now, floor))
        self._jobs += len(ids)
        self.known.update(ids)
        if cursors:
            self.cursors.update(cursors)

    def overlook(self, ids: Sequence[int], *, now: float) -> None:
        """Note jobs that somebody else has ticketed."""
        if ids:
            self.known.update(ids)
            self._leave(ids, now, ahead=self._jobs_before() + len(ids))

    def trim(self, depth: int, *, now: float, settled_before: float) -> int:
        """Drop the oldest tickets beyond the depth of the broker's queue; returns the jobs in them.

        Tickets not published before `settled_before` stay: the depth may not count them yet.
        """
        dropped = 0
        while len(self._tickets) > depth and self._tickets[0].published_at <= settled_before:
            ids = self._tickets.popleft().ids
            dropped += len(ids)
            self._leave(ids, now, ahead=FIRST_PREFETCH * len(ids))
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

    def doubt(self, *, now: float) -> None:
        """A consumer is gone, perhaps with tickets in its hands: presume of none that left so far that it is held."""
        self._doubted_at = now

    def _jobs_before(self) -> float:
        """How many jobs one consumer may have to claim before what is ticketed next."""
        return self.jobs / self.consumers

    def _patience(self, ahead: float) -> float:
        return patience_seconds(
            jobs=ahead, seconds_per_job=self.seconds_per_job, is_busy=self.is_busy, least=self._remember
        )

    def _leave(self, ids: Sequence[int], now: float, *, ahead: float) -> None:
        self._left.append(_Left(ids, now, now + self._remember, ahead))
        self._left_jobs += len(ids)

    def _forget(self, now: float) -> None:
        while self._left and (self._left[0].until <= now or self._left_jobs > MAX_LEFT_JOBS):
            left = self._left.popleft()
            may_be_held = left.since > self._doubted_at and now < left.since + self._patience(left.ahead)
            if may_be_held and self._left_jobs <= MAX_LEFT_JOBS:
                self._left.append(left._replace(until=now + self._remember))
            else:
                self._left_jobs -= len(left.ids)
                self.known.difference_update(left.ids)
