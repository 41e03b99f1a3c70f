"""The jobs that this consumer holds: how they travel from stage to stage, and how many it may hold."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from batchyard.jobs import ClaimedJob, Outcome
from batchyard.model import Model
from batchyard_consumers.batching import Reason
from batchyard_consumers.served import Served
from batchyard_consumers.speed import Search

MAX_AHEAD_SECONDS = 2.0
"""Predicted device time that may be claimed beyond the next batch: what is claimed is out of reach of new replicas and
of urgent jobs."""
MIN_AHEAD_BATCHES = 2
"""Claimed even where one batch takes longer than that: the next one, and one more to sort by length with."""
MAX_AHEAD_BATCHES = 32
"""A pool this deep sorts as well as a deeper one."""
FEW_JOBS = 256
"""Claimed ahead whatever the size of a batch, where the time allows it: a claim costs about as much for one job."""
LEAST_CLAIM = 0.25
"""Of what may be claimed ahead: what is missing of a full pool is not claimed batch by batch."""
MAX_AHEAD_JOBS = 8192
MAX_HELD_JOBS = 16_384
MAX_HELD_BYTES = 256 * 1024 * 1024
"""Of inputs."""


@dataclass(slots=True, kw_only=True)
class Chunk:
    """Jobs of one version as claimed together."""

    served: Served
    owner: int
    """The registration under which they were claimed: it fences every later write."""
    jobs: Sequence[ClaimedJob]
    claimed_at: float


@dataclass(slots=True, kw_only=True, eq=False)
class Batch:
    """Jobs that go through the device together; the sequences run side by side."""

    served: Served
    model: Model
    """As loaded when it was formed."""
    owner: int
    jobs: list[ClaimedJob]
    items: list[Any]
    costs: list[int]
    cost: int
    padded_cost: int
    reason: Reason
    waited_seconds: float = 0.0
    """From preparation to forming, of the job that waited longest."""
    outputs: Any = None
    seconds: float = 0.0
    """Of the pass."""
    share: float = 1.0
    """Of the device, that the pass had."""
    is_split: bool = False
    """Part of a batch that failed: says nothing about speed, and its items are made anew before it runs."""
    spent: list[float] | None = None
    """Seconds of the device that each job has had in passes that failed."""
    before_shrinking: Search | None = None
    """How the speed stood before the batch that this is a part of ran out of memory."""

    @property
    def device_seconds(self) -> float:
        """Of the whole device."""
        return self.seconds * self.share

    def device_us(self) -> list[int]:
        """What each job has had of the device, by cost, passes that failed included: the parts add up to the whole."""
        ends = [0, *map(int, accumulate([1e6 * part for part in self._parts()]))]
        return [end - start for start, end in pairwise(ends)]

    def halves(self) -> list[Batch]:
        """The same jobs in two batches, the first half first."""
        middle = len(self.jobs) // 2
        return [self.part(range(middle)), self.part(range(middle, len(self.jobs)))]

    def part(self, places: Sequence[int]) -> Batch:
        """Some of its jobs, to run once more; what they have had of the device goes with them."""
        costs, spent = [self.costs[place] for place in places], self._parts()
        return Batch(
            served=self.served,
            model=self.model,
            owner=self.owner,
            jobs=[self.jobs[place] for place in places],
            items=[self.items[place] for place in places],
            costs=costs,
            cost=sum(costs),
            padded_cost=max(costs, default=0) * len(costs) if self.served.pads else sum(costs),
            reason=self.reason,
            is_split=True,
            spent=[spent[place] for place in places],
            before_shrinking=self.before_shrinking,
        )

    def _parts(self) -> list[float]:
        unit = self.device_seconds / self.cost
        parts = [cost * unit for cost in self.costs]
        return parts if self.spent is None else [part + before for part, before in zip(parts, self.spent, strict=True)]


@dataclass(slots=True, kw_only=True)
class Finished:
    """Outcomes on their way to the database."""

    owner: int
    outcomes: Sequence[Outcome]


def ahead_limit(*, batch_jobs: int, seconds_per_job: float | None, other_seconds: float) -> int:
    """How many jobs of a version may be claimed and not yet be in a batch.

    `other_seconds` is the device time that other versions' claimed jobs take. Before anything is known of a version's
    speed, a few batches.
    """
    few = MIN_AHEAD_BATCHES * batch_jobs
    if seconds_per_job is None:
        return min(few, MAX_AHEAD_JOBS)
    by_time = batch_jobs + int(max(0.0, MAX_AHEAD_SECONDS - other_seconds) / seconds_per_job)
    by_depth = max(MAX_AHEAD_BATCHES * batch_jobs, FEW_JOBS)
    return min(max(few, min(by_time, by_depth)), MAX_AHEAD_JOBS)


@dataclass
class Holding:
    """Counts what is held, from claim to persisted outcome. Thread-safe."""

    changed: threading.Event = field(default_factory=threading.Event)
    """Set when there is more room than before; the claiming thread waits for it."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ahead: dict[str, int] = field(default_factory=dict)
    _jobs: int = 0
    _bytes: int = 0
    """Of inputs; shrinks by the mean, so that nothing is measured twice."""
    _mean_bytes: float = 256.0

    @property
    def jobs(self) -> int:
        """Claimed and not yet persisted."""
        return self._jobs

    def ahead(self, served: Served) -> int:
        """Jobs of a version that are claimed and not yet in a batch."""
        return self._ahead.get(served.name, 0)

    def room(self, served: Served, versions: Sequence[Served]) -> int:
        """How many more jobs of this version may be claimed now."""
        with self._lock:
            limit = self._limit(served, versions)
            by_bytes = int((MAX_HELD_BYTES - self._bytes) / self._mean_bytes)
            return max(0, min(limit - self._ahead.get(served.name, 0), MAX_HELD_JOBS - self._jobs, by_bytes))

    def least_claim(self, served: Served, versions: Sequence[Served]) -> int:
        """The smallest part of a ticket that is worth a transaction: any, where that is more than waits already."""
        with self._lock:
            worth = max(served.speed.batch_jobs, int(LEAST_CLAIM * self._limit(served, versions)))
            return min(worth, self._ahead.get(served.name, 0))

    def _limit(self, served: Served, versions: Sequence[Served]) -> int:
        others = sum(
            self._ahead.get(other.name, 0) * (other.speed.seconds_per_job or 0.0)
            for other in versions
            if other is not served
        )
        return ahead_limit(
            batch_jobs=served.speed.batch_jobs,
            seconds_per_job=served.speed.seconds_per_job,
            other_seconds=others,
        )

    def claimed(self, served: Served, jobs: Sequence[ClaimedJob]) -> None:
        size = sum([len(job.input) for job in jobs])
        with self._lock:
            self._ahead[served.name] = self._ahead.get(served.name, 0) + len(jobs)
            self._jobs += len(jobs)
            self._bytes += size
            self._mean_bytes += 0.2 * (max(1.0, size / len(jobs)) - self._mean_bytes)

    def left_pool(self, served: Served, count: int) -> None:
        """Jobs went into a batch, or failed before one."""
        with self._lock:
            self._ahead[served.name] -= count
        self.changed.set()

    def let_go(self, count: int) -> None:
        """Jobs were persisted, handed back or dropped."""
        with self._lock:
            if self._jobs:
                self._bytes -= self._bytes * count // self._jobs
            self._jobs -= count
        self.changed.set()
