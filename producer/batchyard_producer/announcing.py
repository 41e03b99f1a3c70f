"""What follows a commit: tickets, or a nudge for the leader, and the counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from batchyard.catalog import Catalog
from batchyard.jobs import Accepted, Submission
from batchyard.telemetry import ApiMetrics
from batchyard_producer.group_commit import Outcome


class Publisher(Protocol):
    """The part of `batchyard.ticketing.TicketPublisher` that is used here."""

    def committed(self, submissions: Sequence[Submission], outcomes: Sequence[Outcome]) -> None: ...


class Announcer:
    """Called by the group commit, on its thread, after every commit."""

    def __init__(self, *, catalog: Catalog, metrics: ApiMetrics, publisher: Publisher | None = None) -> None:
        self._catalog = catalog
        self._metrics = metrics
        self._publisher = publisher

    def __call__(self, submissions: Sequence[Submission], outcomes: Sequence[Outcome], seconds: float) -> None:
        if self._publisher is not None:
            self._publisher.committed(submissions, outcomes)
        jobs_of: dict[int, int] = {}
        for submission, outcome in zip(submissions, outcomes, strict=True):
            if isinstance(outcome, Accepted) and not outcome.replayed:
                jobs_of[submission.queue_id] = jobs_of.get(submission.queue_id, 0) + len(outcome.ids)
        self._count(jobs_of, submissions=len(submissions), seconds=seconds)

    def _count(self, jobs_of: dict[int, int], *, submissions: int, seconds: float) -> None:
        metrics, queues = self._metrics, self._catalog.snapshot.queues
        metrics.commits.inc()
        metrics.commit_submissions.observe(submissions)
        metrics.commit_jobs.observe(sum(jobs_of.values()))
        metrics.commit_seconds.observe(seconds)
        for queue_id, jobs in jobs_of.items():
            load = queues.get(queue_id)
            if load is not None:
                metrics.submitted_jobs.labels(load.version.name, load.lane.word).inc(jobs)
