"""Leaving in order: stop claiming, hand back what has not started, finish what fits the grace, write, deregister."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from batchyard.broker import Broker
from batchyard.errors import BrokerDown, Unavailable
from batchyard.jobs import ClaimedJob
from batchyard.store.base import JobStore
from batchyard.telemetry import log_event
from batchyard.ticketing import ticket_jobs
from batchyard_consumers import pools
from batchyard_consumers.heartbeat import Heartbeat
from batchyard_consumers.held import Batch
from batchyard_consumers.meter import Meter
from batchyard_consumers.pipeline import Handed, Pipeline

STAGE_SECONDS = 1.0
"""For a stage before the device to end: each does so after the piece in hand."""
WRITE_SECONDS = 2.0
"""Kept of the grace for writing what the device has computed."""
PAUSE_SECONDS = 0.2

log = logging.getLogger(__name__)


class Blame(NamedTuple):
    """What a process dies of that can still leave in order: all but these jobs is handed back."""

    owner: int
    executing: Sequence[int]
    cause: str
    """For people, as in `JobStore.bury`."""


class Drain:
    """The end of one consumer. `run` is called once, on a thread of its own; `hurry` at any time."""

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        store: JobStore,
        broker: Broker,
        heartbeat: Heartbeat,
        meter: Meter,
        grace_seconds: float,
        queue_names: dict[int, str],
        blame: Callable[[], Blame | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pipeline = pipeline
        self._store = store
        self._broker = broker
        self._heartbeat = heartbeat
        self._meter = meter
        self._queue_names = queue_names
        self._blame = blame
        self._clock = clock
        self._hurry = threading.Event()
        self._deadline = clock() + grace_seconds

    def hurry(self) -> None:
        """Wait for nothing more."""
        self._hurry.set()

    def shorten(self, *, grace_seconds: float) -> None:
        """Be through so many seconds from now, if not earlier."""
        self._deadline = min(self._deadline, self._clock() + grace_seconds)

    def run(self, *, reason: str) -> None:
        """Take the consumer down; whatever cannot be done in time the lease and the reaper make good."""
        started = self._clock()
        grace = round(self._left(), 3)
        log_event(log, "drain_started", reason=reason, grace_seconds=grace, held=self._pipeline.holding.jobs)
        self._pipeline.stop_claiming()
        self._heartbeat.tell("draining")
        # Before anything else: the machine may go sooner than it said, and no job is to be blamed for that.
        self._tell_preemption()
        self._hand_back(self._pipeline.take_unstarted(timeout=STAGE_SECONDS))
        self._hand_back_tickets()
        self._await_batches()
        self._hand_back(self._pipeline.take_pooled())
        written = self._pipeline.finish_writing(timeout=max(WRITE_SECONDS, self._left()))
        self._pipeline.hurry.set()
        self._tell_preemption()
        self._heartbeat.stop()
        self._try(self._leave)
        log_event(log, "drain_finished", seconds=round(self._clock() - started, 3), all_written=written)

    def _leave(self) -> None:
        blame = self._blame()
        if blame is not None and blame.owner == self._pipeline.owner:
            self._store.bury(blame.owner, executing=blame.executing, cause=blame.cause)
        else:
            self._store.deregister(self._pipeline.owner)

    def _tell_preemption(self) -> None:
        """At the beginning and at the end: a notice may come after the signal that it has caused."""
        if self._heartbeat.is_preempted:
            self._try(self._heartbeat.report)

    def _await_batches(self) -> None:
        """Wait for the batches on the device that are likely to end in time; hand the jobs of others back at once."""
        given_up: list[Batch] = []
        while running := [one for one in self._pipeline.running if one.batch not in given_up]:
            now, latest = self._clock(), self._deadline - WRITE_SECONDS
            # The pass of a late one goes on until the process ends; its results are fenced.
            late = [one for one in running if self._hurry.is_set() or max(now, one.ends_at) > latest]
            if late:
                self._hand_back([Handed(one.batch.owner, one.batch.jobs) for one in late], is_late=True)
                given_up += [one.batch for one in late]
            elif self._pipeline.finish_device(timeout=min(PAUSE_SECONDS, latest - now)):
                return

    def _hand_back(self, handed: Sequence[Handed], *, is_late: bool = False) -> None:
        """Release jobs and ticket them again, so that another consumer has them within moments. Those of a batch that
        is too late, and all that a machine loses that is taken back, count as preempted."""
        preempted = is_late or self._heartbeat.is_preempted
        for owner in dict.fromkeys(piece.owner for piece in handed):
            jobs = [job for piece in handed if piece.owner == owner for job in piece.jobs]
            if jobs:
                self._try(lambda owner=owner, jobs=jobs: self._release(jobs, owner=owner, preempted=preempted))  # type: ignore[misc]

    def _release(self, jobs: Sequence[ClaimedJob], *, owner: int, preempted: bool) -> None:
        queued = set(self._store.release(jobs, owner=owner, preempted=preempted))
        self._meter.metrics.released_jobs.labels("preempted" if preempted else "drain").inc(len(jobs))
        by_queue: dict[int, list[int]] = {}
        for job in jobs:
            if job.id in queued:
                by_queue.setdefault(job.queue_id, []).append(job.id)
        log_event(log, "jobs_handed_back", jobs=len(queued), preempted=preempted)
        self._ticket(by_queue)

    def _hand_back_tickets(self) -> None:
        """Tickets that were never claimed: on Redis they are in no list any more."""
        by_queue: dict[int, list[int]] = {}
        for ticket in self._pipeline.inbox.take_all():
            by_queue.setdefault(ticket.queue_id, []).extend(ticket.ids)
        self._ticket(by_queue)

    def _ticket(self, by_queue: dict[int, list[int]]) -> None:
        served = pools.by_queue(self._pipeline.versions)
        try:
            for queue_id, ids in by_queue.items():
                size = ticket_jobs(served[queue_id].speed.seconds_per_job)
                self._broker.publish(self._queue_names[queue_id], queue_id, ids, ticket_jobs=size)
        except BrokerDown as down:
            log_event(log, "tickets_not_published", level=logging.WARNING, reason=down.message)

    def _try(self, action: Callable[[], object]) -> None:
        """Do it, again and again while the database is away and time is left."""
        while True:
            try:
                action()
                return
            except Unavailable as away:
                log_event(log, "drain_waits", level=logging.WARNING, reason=away.message)
            if self._left() <= 0 or self._hurry.wait(PAUSE_SECONDS):
                return

    def _left(self) -> float:
        return 0.0 if self._hurry.is_set() else max(0.0, self._deadline - self._clock())
