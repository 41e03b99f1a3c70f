"""What a consumer counts, per batch and never per job, and what its heartbeat tells."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from batchyard.exposition import snapshot
from batchyard.jobs import ClaimedJob, Outcome, State
from batchyard.telemetry import ConsumerMetrics, new_registry, observe_counts
from batchyard_consumers.held import Batch
from batchyard_consumers.served import Served


@dataclass
class Batches:
    """What went through the device of one version, so far."""

    cost: int = 0
    padded_cost: int = 0
    budget: int = 0
    closed: Counter[str] = field(default_factory=Counter)
    """By reason."""

    def add(self, batch: Batch) -> None:
        self.cost += batch.cost
        self.padded_cost += batch.padded_cost
        self.budget += max(batch.served.speed.budget, batch.padded_cost)
        self.closed[batch.reason] += 1

    def told(self) -> dict[str, Any]:
        """How full batches were, what part of them was padding, and why each closed."""
        if not self.closed:
            return {}
        return {
            "fill": round(self.padded_cost / self.budget, 4),
            "padding": round(1 - self.cost / self.padded_cost, 4),
            "closed": dict(self.closed),
        }


class Meter:
    """The consumer's registry, and the sums that `status` and `top` show. Each method may be called from any thread."""

    def __init__(self) -> None:
        self.registry = new_registry()
        self.metrics = ConsumerMetrics(self.registry)
        self._started = time.monotonic()
        self._finished: Counter[str] = Counter()
        self._batches: defaultdict[str, Batches] = defaultdict(Batches)
        self._shared: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._lock = threading.Lock()
        """Of `_shared`, `_batches` and `_busy_seconds`."""
        self._busy_seconds = 0.0
        self._first_claim_ms: int | None = None
        self._last: tuple[float, float, int] = (self._started, 0.0, 0)

    @property
    def busy_seconds(self) -> float:
        """Time in which the device computed, so far."""
        return self._busy_seconds

    def claimed(self, served: Served, jobs: Sequence[ClaimedJob], *, now_ms: int) -> None:
        if self._first_claim_ms is None:
            self._first_claim_ms = now_ms
        # Jobs of one submission share their time, so there are few different ones.
        created = Counter([job.created_at_ms for job in jobs])
        waits = {(now_ms - moment) / 1000: count for moment, count in created.items()}
        observe_counts(self.metrics.queue_seconds.labels(served.name), waits)

    def counted_claim(self, kind: str, jobs: int) -> None:
        """`kind`: ticket or idle."""
        self.metrics.claims.labels(kind).inc()
        self.metrics.claimed_jobs.labels(kind).inc(jobs)

    def shared(self, served: Served, **counts: int) -> None:
        """By outcome, jobs of a model whose results are kept for others: `hit`, `miss` or `wait`."""
        for outcome, count in counts.items():
            self.metrics.cache_jobs.labels(served.name, outcome).inc(count)
        with self._lock:
            self._shared[served.name].update(counts)

    def preprocessed(self, served: Served, seconds: float) -> None:
        self.metrics.preprocess_seconds.labels(served.name).observe(seconds)

    def ran(self, batch: Batch) -> None:
        name, jobs = batch.served.name, len(batch.jobs)
        self.metrics.batches.labels(name, batch.reason).inc()
        self.metrics.batch_jobs.labels(name).observe(jobs)
        self.metrics.batch_cost.labels(name, "useful").inc(batch.cost)
        self.metrics.batch_cost.labels(name, "padding").inc(batch.padded_cost - batch.cost)
        self.metrics.batch_wait_seconds.labels(name).observe(batch.waited_seconds)
        self.metrics.forward_seconds.labels(name).observe(batch.seconds)
        self.metrics.device_busy_seconds.inc(batch.device_seconds)
        with self._lock:
            self._busy_seconds += batch.device_seconds
            self._batches[name].add(batch)

    def stepped(self, served: Served, *, jobs: int, seconds: float) -> None:
        """A continuous model went on with so many jobs inside."""
        self.metrics.batches.labels(served.name, "step").inc()
        self.metrics.batch_jobs.labels(served.name).observe(jobs)
        self.metrics.forward_seconds.labels(served.name).observe(seconds)
        self.metrics.device_busy_seconds.inc(seconds)
        with self._lock:
            self._busy_seconds += seconds

    def persisted(self, outcomes: Sequence[Outcome], *, seconds: float) -> None:
        self.metrics.persist_seconds.observe(seconds)
        self.metrics.persist_jobs.observe(len(outcomes))
        states = [outcome.state for outcome in outcomes]
        # Mostly all the same: counting one value is far cheaper than a Counter of enum members.
        succeeded = states.count(State.SUCCEEDED)
        self._finished["succeeded"] += succeeded
        if succeeded < len(states):
            for state in states:
                if state is not State.SUCCEEDED:
                    self._finished[state.word] += 1

    def finished(self, served: Served, state: State, count: int) -> None:
        """Outcomes decided, before they are written."""
        if state is State.WAITING:
            self.metrics.retried_jobs.labels(served.name).inc(count)
        else:
            self.metrics.finished_jobs.labels(served.name, state.word).inc(count)

    def stats(self, versions: Sequence[Served], *, stages: dict[str, int]) -> dict[str, Any]:
        """For the heartbeat: JSON-like. Called by the heartbeat's thread alone."""
        for stage, jobs in stages.items():
            self.metrics.pipeline_jobs.labels(stage).set(jobs)
        now, busy, done = time.monotonic(), self._busy_seconds, self._finished[State.SUCCEEDED.word]
        then, busy_then, done_then = self._last
        self._last = (now, busy, done)
        elapsed = max(now - then, 1e-6)
        return {
            "jobs_per_second": round((done - done_then) / elapsed, 1),
            "device_busy": round(min(1.0, (busy - busy_then) / elapsed), 3),
            "finished": dict(self._finished),
            "first_claim_ms": self._first_claim_ms,
            "held": stages,
            "models": {
                served.name: {**_of_model(served, self._shared[served.name]), **self._batches[served.name].told()}
                for served in versions
            },
            "samples": snapshot(self.registry),
        }


def _of_model(served: Served, shared: Counter[str]) -> dict[str, Any]:
    speed = served.speed
    return {
        "loaded": served.model is not None,
        "load_seconds": round(served.load_seconds, 3),
        "load_error": served.load_error,
        "dtype": served.dtype,
        "batches": speed.batches,
        "batch_size": round(speed.mean_jobs, 1),
        "budget": speed.budget,
        "mean_cost": round(speed.mean_cost, 2),
        "seconds_per_job": speed.seconds_per_job,
        "cache": dict(shared),
    }
