"""The store's chores that fall to the leader: when each is due, and what follows from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from batchyard.jobs import Lane
from batchyard.settings import Settings
from batchyard.store.base import JobStore
from batchyard.telemetry import DispatcherMetrics

if TYPE_CHECKING:
    from batchyard_producer.dispatcher import Timing

STEP_JOBS = 1000
"""Rows that one step of a chore moves at most: what keeps its transactions short."""
STEP_BULKS = 500
FOLD_ROWS = 20_000
RETIRE_JOBS = 500
RETIRE_EMPTY_STEPS = 5
"""Steps of retention in a row that find nothing before it rests; a step looks at part of the jobs only."""
YOUNG_MS = 60_000
"""Finished jobs younger than this stay, whatever the bytes: somebody is about to fetch them."""

Requeue = Callable[[Mapping[int, list[int]], str], None]


class Chores:
    """Owned by the dispatcher's thread. Each chore that moved as much as it may is due again at once."""

    def __init__(
        self,
        store: JobStore,
        settings: Settings,
        *,
        timing: Timing,
        requeued: Requeue,
        metrics: DispatcherMetrics | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._retention = settings.retention
        self._queues = settings.queues
        self._firm_models = {model for pool in settings.pools if pool.capacity == "on_demand" for model in pool.models}
        self._lease_seconds = settings.queues.lease_seconds
        self._timing = timing
        self._requeued = requeued
        self._metrics = metrics
        self._clock = clock
        # SQLite folds as it writes, and numbers flushes too: nobody waits for a fold there.
        self.folds_promptly = not settings.database.url.startswith("sqlite")
        self._due: dict[str, float] = {}
        self._answering_since: float | None = None
        self._answered_at = 0.0
        self._empty_steps = 0
        self._folded_at = 0.0

    @property
    def pause(self) -> float:
        """Seconds until the next chore is due."""
        return max(0.0, min(self._due.values(), default=0.0) - self._clock())

    def database_answered(self) -> None:
        """Note that the database answers; a silence of ours counts as an outage, for we may have been suspended."""
        now = self._clock()
        if self._answering_since is None or now - self._answered_at > max(2.0, self._lease_seconds / 3):
            self._answering_since = now
        self._answered_at = now

    def database_failed(self) -> None:
        self._answering_since = None

    def run(self, *, is_active: bool) -> None:
        """Do what is due. `is_active`: jobs were committed or completed since the last time."""
        self._reap()
        self._promote()
        self._expire()
        self._move_to_firm()
        self._sweep_bulks()
        self._finish_bulks()
        self._fold(is_active=is_active)
        self._retire()
        self._forget_progress()
        self._forget_computations()
        self.database_answered()

    def _reap(self) -> None:
        # An outage of the database must expire nobody: all get as long as a lease to renew it.
        answering = self._answering_since is not None and self._clock() - self._answering_since >= self._lease_seconds
        if answering and self._is_due("reap", every=self._timing.reap):
            self._requeue(self._store.reap(limit=STEP_JOBS), chore="reap", reason="reaped")

    def _promote(self) -> None:
        if self._is_due("promote", every=self._timing.promote):
            self._requeue(self._store.promote_due(limit=STEP_JOBS), chore="promote", reason="retry")

    def _expire(self) -> None:
        if not self._is_due("expire", every=self._timing.expire):
            return
        expired = len(self._store.expire_due(limit=STEP_JOBS))
        self._again_if(expired >= STEP_JOBS, "expire")
        if expired and self._metrics is not None:
            self._metrics.expired_jobs.inc(expired)

    def _move_to_firm(self) -> None:
        """Tolerant jobs that spot capacity has failed, or fails to reach in time. The latter only to consumers that
        are ready: a spot consumer is a better hope than one that has yet to start."""
        if not self._firm_models or not self._is_due("firm", every=self._timing.firm):
            return
        served = {
            version.queue_ids[Lane.TOLERANT]: version.queue_ids[Lane.FIRM]
            for version in self._store.models()
            if not self._firm_models.isdisjoint((version.model, version.name))
        }
        ready = {
            queue_id
            for info in self._store.consumers()
            if info.state == "ready" and info.capacity == "on_demand"
            for queue_id in info.queue_ids
        }
        soon_ms = self._store.now_ms() + round(self._queues.firm_slack_seconds * 1000)
        for start_before_ms, is_ready in ((soon_ms, True), (0, False)):
            moved = self._store.move_to_firm(
                {old: new for old, new in served.items() if (new in ready) is is_ready},
                preemptions=self._queues.max_preemptions,
                start_before_ms=start_before_ms,
                limit=STEP_JOBS,
            )
            self._requeue(moved, chore="firm", reason="moved_to_firm")

    def _sweep_bulks(self) -> None:
        if self._is_due("sweep", every=self._timing.sweep):
            self._again_if(self._store.sweep_bulks(limit=STEP_JOBS) > 0, "sweep")

    def _finish_bulks(self) -> None:
        if self._is_due("finish bulks", every=self._timing.webhooks):
            self._again_if(self._store.finish_bulks(limit=STEP_BULKS) >= STEP_BULKS, "finish bulks")

    def _fold(self, *, is_active: bool) -> None:
        if self.folds_promptly and is_active:
            self._due["fold"] = min(self._due.get("fold", 0.0), self._folded_at + self._timing.fold)
        if not self._is_due("fold", every=self._timing.fold_idle):
            return
        folded = self._store.fold(limit=FOLD_ROWS)
        self._folded_at = self._clock()
        if folded and self.folds_promptly:
            self._due["fold"] = self._folded_at + self._timing.fold
        if folded and self._metrics is not None:
            self._metrics.folded_rows.inc(folded)

    def _forget_progress(self) -> None:
        if self._is_due("forget progress", every=self._timing.progress):
            self._again_if(self._store.forget_progress(limit=STEP_JOBS) >= STEP_JOBS, "forget progress")

    def _forget_computations(self) -> None:
        if self._is_due("forget computations", every=self._timing.computations):
            self._again_if(self._store.forget_computations(limit=STEP_JOBS) > 0, "forget computations")

    def _retire(self) -> None:
        if not self._is_due("retire", every=self._timing.retire):
            return
        now_ms = self._store.now_ms()
        stored = self._store.stored_bytes()
        horizon = now_ms - round(self._retention.keep_seconds * 1000)
        if stored > self._retention.keep_bytes:
            horizon = max(horizon, now_ms - YOUNG_MS)
        retired = self._store.retire(
            finished_before_ms=horizon,
            limit=RETIRE_JOBS,
            tombstone_ms=round(self._retention.tombstone_seconds * 1000),
        )
        self._empty_steps = 0 if retired else self._empty_steps + 1
        if self._empty_steps < RETIRE_EMPTY_STEPS:
            self._due["retire"] = self._clock() + self._timing.retire_step
        else:
            self._empty_steps = 0
        if self._metrics is not None:
            self._metrics.stored_bytes.set(stored)
            self._metrics.retired_jobs.inc(retired)

    def _requeue(self, queued: Mapping[int, list[int]], *, chore: str, reason: str) -> None:
        count = sum(map(len, queued.values()))
        self._again_if(count >= STEP_JOBS, chore)
        if not count:
            return
        if self._metrics is not None:
            self._metrics.requeued_jobs.labels(reason).inc(count)
        self._requeued(queued, "requeued")

    def _is_due(self, chore: str, *, every: float) -> bool:
        """Whether to do it now; then it is due again after `every` seconds."""
        now = self._clock()
        if now < self._due.get(chore, 0.0):
            return False
        self._due[chore] = now + every
        return True

    def _again_if(self, has_more: bool, chore: str) -> None:
        if has_more:
            self._due[chore] = self._clock()
