"""The queues of a replay: which job is next, and what the policy is told of those that are not finished."""

from __future__ import annotations

import heapq
import math
from collections import deque

import numpy as np

from batchyard.jobs import BUCKET_MS
from batchyard_scaler.policy.records import Demand, Due
from batchyard_scaler.simulator.trace import Floats, Trace

BUCKET_SECONDS = BUCKET_MS / 1000
START_MARGIN = 1.5
"""A job's latest safe start leaves it so many times its expected run time."""
NO_BUCKET = math.inf


class SimulatedQueue:
    """The jobs of one model and lane: by arrival, those whose latest safe start is near ahead, as in production."""

    __slots__ = (
        "_buckets",
        "_by_arrival",
        "_by_start",
        "_expected",
        "_is_waiting",
        "_start_by",
        "_urgent_seconds",
        "demand_name",
        "index",
        "is_tolerant",
        "model",
        "model_name",
        "running",
        "waiting",
    )

    def __init__(
        self,
        *,
        model: int,
        model_name: str,
        is_tolerant: bool,
        ledger: Ledger,
        is_in_order: bool,
        urgent_seconds: float,
    ) -> None:
        self.model = model
        self.model_name = model_name
        self.is_tolerant = is_tolerant
        self.demand_name = f"{model_name} {'tolerant' if is_tolerant else 'firm'}"
        self.waiting = 0
        self.running = 0
        self._by_arrival: deque[int] = deque()
        # Where deadlines ascend with arrivals, the order of arrival is the order of starts too.
        self._by_start: list[tuple[float, int]] | None = None if is_in_order else []
        self._start_by = ledger.start_by
        self._expected = ledger.expected
        self._is_waiting = ledger.is_waiting
        self._urgent_seconds = urgent_seconds
        self._buckets: dict[float, list[float]] = {}
        """Deadline of the bucket → jobs and work that are not finished."""

    def count_in(self, job: int, bucket: float) -> None:
        entry = self._buckets.get(bucket)
        if entry is None:
            self._buckets[bucket] = [1, self._expected[job]]
        else:
            entry[0] += 1
            entry[1] += self._expected[job]

    def count_out(self, job: int, bucket: float) -> None:
        entry = self._buckets[bucket]
        entry[0] -= 1
        if entry[0]:
            entry[1] -= self._expected[job]
        else:
            del self._buckets[bucket]

    def add(self, job: int, *, is_first: bool = False) -> None:
        """Let a job wait; `is_first` where it comes back."""
        self._is_waiting[job] = 1
        self.waiting += 1
        if is_first:
            self._by_arrival.appendleft(job)
        else:
            self._by_arrival.append(job)
        if self._by_start is not None:
            heapq.heappush(self._by_start, (self._start_by[job], job))

    def take(self, now: float) -> int:
        """The next job; there must be one."""
        self.waiting -= 1
        job = self._most_urgent(now)
        if job is None:
            while not self._is_waiting[job := self._by_arrival.popleft()]:
                pass
        self._is_waiting[job] = 0
        return job

    def next_start_by(self) -> float:
        """The earliest latest safe start among those that wait."""
        if self._by_start is not None:
            while not self._is_waiting[self._by_start[0][1]]:
                heapq.heappop(self._by_start)
            return self._by_start[0][0]
        return self._start_by[self._by_arrival[0]]

    def demand(self, now: float) -> Demand:
        due = [
            Due(in_seconds=bucket - now, jobs=int(jobs), work_seconds=work)
            for bucket, (jobs, work) in sorted(self._buckets.items())
        ]
        return Demand(
            queue=self.demand_name,
            model=self.model_name,
            is_tolerant=self.is_tolerant,
            due=due,
            running_jobs=self.running,
        )

    @property
    def has_work(self) -> bool:
        return bool(self._buckets)

    def work_seconds(self) -> float:
        """What is not finished."""
        return sum(work for _, work in self._buckets.values())

    def _most_urgent(self, now: float) -> int | None:
        heap = self._by_start
        if heap is None:
            return None
        while heap and not self._is_waiting[heap[0][1]]:
            heapq.heappop(heap)
        if heap and heap[0][0] < now + self._urgent_seconds:
            return heapq.heappop(heap)[1]
        return None


class Ledger:
    """What is known of each job, as plain lists: they are read one entry at a time."""

    def __init__(self, trace: Trace) -> None:
        expected = trace.expected_seconds()
        self.expected: list[float] = expected.tolist()
        self.work: list[float] = trace.work_seconds.tolist()
        self.bucket: list[float] = (np.ceil(trace.due_at / BUCKET_SECONDS) * BUCKET_SECONDS).tolist()
        self.start_by: list[float] = (trace.due_at - START_MARGIN * expected).tolist()
        self.is_waiting = bytearray(len(trace))


def queues_of(trace: Trace, ledger: Ledger, *, urgent_seconds: float) -> dict[tuple[int, bool], SimulatedQueue]:
    """One for each model and lane that has jobs."""
    start_by: Floats = np.asarray(ledger.start_by)
    found = {}
    for model, name in enumerate(trace.models):
        for is_tolerant in (False, True):
            mine = start_by[(trace.model == model) & (trace.is_tolerant == is_tolerant)]
            if len(mine):
                found[model, is_tolerant] = SimulatedQueue(
                    model=model,
                    model_name=name,
                    is_tolerant=is_tolerant,
                    ledger=ledger,
                    is_in_order=bool(np.all(mine[1:] >= mine[:-1])),
                    urgent_seconds=urgent_seconds,
                )
    return found
