"""Where prepared jobs wait for the device: one pool a version, and whose batch is next.

The device's first thread takes batches of every version; those that help it, where it has several, take batches of the
versions whose passes may run at the same time.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from batchyard.jobs import ClaimedJob, Lane, Outcome, State
from batchyard_consumers.batching import Formed, Limits, Pool
from batchyard_consumers.channels import Closed
from batchyard_consumers.held import Batch, Holding
from batchyard_consumers.served import Served
from batchyard_consumers.turns import Contender, Turns, patience_seconds

AGE_CAP_SECONDS, SWEEPS = 3.0, 3.0
"""A job older than this, or than so many sweeps over its pool, goes next."""
FIRM_RANK = 1000
"""Above every priority: firm work goes before tolerant work."""


class Pools:
    """Filled by the preprocessing threads, emptied by the device's threads."""

    def __init__(
        self,
        versions: Sequence[Served],
        *,
        holding: Holding,
        owner: int,
        now_ms: Callable[[], int],
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        firm = {served.queue_ids[Lane.FIRM] for served in versions}
        self._versions = {served.name: served for served in versions}
        self._pools = {served.name: Pool(rank=_rank_by(firm), age_cap_seconds=AGE_CAP_SECONDS) for served in versions}
        self._turns = Turns()
        self._again: deque[Batch] = deque()
        self._out: Counter[str] = Counter()
        """Batches that were taken and are not `through`, by version."""
        self._holding = holding
        self._owner = owner
        self._now_ms = now_ms
        self._clock_ns = clock_ns
        self._is_closed = False
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        """Wakes the first thread."""
        self._helped = threading.Condition(lock)
        """Wakes those that help."""
        self._joined = {served.name: threading.Condition(lock) for served in versions}
        """Wakes the thread of a continuous version."""

    def add(
        self, served: Served, jobs: Sequence[ClaimedJob], items: Sequence[Any], costs: Sequence[int], *, owner: int
    ) -> bool:
        """Take in prepared jobs; False where they were claimed under a registration that is over."""
        with self._changed:
            if owner != self._owner or self._is_closed:
                return False
            self._pools[served.name].add(jobs, items, costs, now_ns=self._clock_ns())
            if served.is_continuous:
                self._joined[served.name].notify()
                return True
            self._changed.notify()
            if served.is_concurrent:
                self._helped.notify()
            return True

    def put_back(self, batches: Sequence[Batch]) -> None:
        """The parts of a batch that failed, in order: they run before anything else, to find out whose fault it was."""
        with self._changed:
            self._again.extendleft(reversed(batches))
            self._changed.notify()
            self._helped.notify()

    def next(self, *, helps: bool = False) -> Batch:
        """Wait for the next batch; where the caller `helps`, of a version whose passes may run at the same time.

        Raises Closed.
        """
        waited_for: str | None = None
        changed = self._helped if helps else self._changed
        with changed:
            while True:
                if self._is_closed:
                    raise Closed
                if self._is_again(helps=helps):
                    self._out[self._again[0].served.name] += 1
                    return self._again.popleft()
                served = self._choose(helps=helps)
                if served is None:
                    changed.wait()
                    continue
                patience = 0.0 if waited_for == served.name else self._patience(served)
                if patience > 0 and self._wait_for_more(served, patience, helps=helps):
                    continue
                waited_for = served.name
                batch = self._form(served)
                if batch is not None:
                    self._out[served.name] += 1
                    if served.is_concurrent and len(self._pools[served.name]):
                        self._helped.notify()
                    return batch

    def joiners(self, served: Served, *, most: int, may_wait: bool) -> list[Batch]:
        """Up to `most` jobs of a continuous version, each as a batch of its own, a suspect by itself; none where there
        are none, after waiting for one where the caller may. Raises Closed.
        """
        with self._changed:
            pool = self._pools[served.name]
            while may_wait and not len(pool) and not self._is_closed:
                self._joined[served.name].wait()
            if self._is_closed:
                raise Closed
            now_ns = self._clock_ns()
            limits = Limits(budget=sys.maxsize, max_jobs=most, padded=False)
            formed = pool.form(limits, now_ns=now_ns, now_ms=self._now_ms())
            if formed is None:
                return []
            self._holding.left_pool(served, len(formed.entries))
            return [
                _batch(
                    served, replace(formed, entries=[entry], cost=entry[0], padded_cost=entry[0]), self._owner, now_ns
                )
                for entry in formed.entries
            ]

    def charge(self, served: Served, *, seconds: float) -> None:
        """Note what a version's batch took of the device."""
        with self._changed:
            self._turns.charge(served.name, seconds=seconds, share=served.settings.share)

    def through(self, served: Served) -> None:
        """Nobody needs the version's model for one of its batches any more, except for parts that were put back."""
        with self._changed:
            self._out[served.name] -= 1

    def is_free_of(self, served: Served) -> bool:
        """Whether no job of a version waits for the device, is on it, or is being made a result of."""
        with self._changed:
            is_again = any(batch.served is served for batch in self._again)
            return not is_again and not self._out[served.name] and not len(self._pools[served.name])

    def drop(self, ids: frozenset[int]) -> list[Outcome]:
        """Take jobs out that are not wanted any more."""
        with self._changed:
            dropped: list[Outcome] = []
            for name, served in self._versions.items():
                entries = self._pools[name].drop(ids)
                if entries:
                    self._holding.left_pool(served, len(entries))
                dropped += [Outcome(job, State.CANCELLED, cost=cost) for cost, _, job, _ in entries]
            return dropped + self._drop_parts(ids)

    def _drop_parts(self, ids: frozenset[int]) -> list[Outcome]:
        """Out of the parts of failed batches, which have left their pools already."""
        dropped: list[Outcome] = []
        parts, self._again = self._again, deque()
        for batch in parts:
            spent = zip(batch.jobs, batch.costs, batch.device_us(), strict=True)
            dropped += [
                Outcome(job, State.CANCELLED, cost=cost, device_us=device_us)
                for job, cost, device_us in spent
                if job.id in ids
            ]
            kept = [place for place, job in enumerate(batch.jobs) if job.id not in ids]
            if kept:
                self._again.append(batch if len(kept) == len(batch.jobs) else batch.part(kept))
        return dropped

    def take_all(self, *, owner: int | None = None) -> list[tuple[Served, list[ClaimedJob], bool]]:
        """Empty everything; with `owner`, go on under a new registration.

        Answers the jobs by version, and whether they had left the pool (parts of a failed batch).
        """
        with self._changed:
            taken = [
                (served, [entry[2] for entry in entries], False)
                for name, served in self._versions.items()
                if (entries := self._pools[name].take_all())
            ]
            taken += [(batch.served, batch.jobs, True) for batch in self._again]
            self._again.clear()
            if owner is not None:
                self._owner = owner
            return taken

    def close(self) -> None:
        """`next` raises Closed from here on, and nothing more is taken in; what is held stays for `take_all`."""
        with self._changed:
            self._is_closed = True
            for condition in (self._changed, self._helped, *self._joined.values()):
                condition.notify_all()

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    @property
    def jobs(self) -> int:
        """How many wait."""
        return sum(len(pool) for pool in self._pools.values()) + sum(len(batch.jobs) for batch in self._again)

    def _is_again(self, *, helps: bool) -> bool:
        """Whether part of a failed batch is next, for this thread."""
        return bool(self._again) and (not helps or self._again[0].served.is_concurrent)

    def _choose(self, *, helps: bool) -> Served | None:
        now_ns = self._clock_ns()
        contenders = [
            Contender(
                key=name,
                is_firm=pool.holds_rank_above(FIRM_RANK - 1),
                is_overdue=(oldest := pool.oldest_ns()) is not None and now_ns - oldest > AGE_CAP_SECONDS * 1e9,
            )
            for name, pool in self._pools.items()
            if len(pool) and not self._versions[name].is_continuous
        ]
        key = self._turns.pick(contenders, among=lambda name: not helps or self._versions[name].is_concurrent)
        return None if key is None else self._versions[key]

    def _patience(self, served: Served) -> float:
        pool, speed = self._pools[served.name], served.speed
        return patience_seconds(
            waiting_cost=pool.cost,
            budget=speed.budget,
            on_their_way=self._holding.ahead(served) - len(pool),
            is_firm=pool.holds_rank_above(FIRM_RANK - 1),
            predicted_seconds=speed.seconds_for(pool.cost),
        )

    def _wait_for_more(self, served: Served, patience: float, *, helps: bool) -> bool:
        """Wait for jobs that are being prepared; true where the choice should be made anew."""
        give_up = self._clock_ns() + int(patience * 1e9)
        changed = self._helped if helps else self._changed
        while not self._is_closed and not self._is_again(helps=helps):
            left = (give_up - self._clock_ns()) / 1e9
            if left <= 0 or self._patience(served) == 0.0:
                return False
            changed.wait(left)
        return True

    def _form(self, served: Served) -> Batch | None:
        speed, now_ns = served.speed, self._clock_ns()
        limits = Limits(
            budget=speed.budget,
            max_jobs=speed.max_batch_jobs,
            padded=served.pads,
            overhead_cost=speed.overhead_cost(),
        )
        pool = self._pools[served.name]
        # A sweep over what is held takes its time; only what it passes over twice is old.
        pool.age_cap_seconds = max(AGE_CAP_SECONDS, SWEEPS * (speed.seconds_for(pool.cost) or 0.0))
        formed = pool.form(limits, now_ns=now_ns, now_ms=self._now_ms())
        if formed is None:
            return None
        self._holding.left_pool(served, len(formed.entries))
        return _batch(served, formed, self._owner, now_ns)


def _batch(served: Served, formed: Formed, owner: int, now_ns: int) -> Batch:
    costs, arrivals, jobs, items = zip(*formed.entries, strict=True)
    assert served.model is not None
    return Batch(
        served=served,
        model=served.model,
        owner=owner,
        jobs=list(jobs),
        items=list(items),
        costs=list(costs),
        cost=formed.cost,
        padded_cost=formed.padded_cost,
        reason=formed.reason,
        waited_seconds=(now_ns - min(arrivals)) / 1e9,
    )


def _rank_by(firm_queues: set[int]) -> Callable[[ClaimedJob], int]:
    def rank(job: ClaimedJob) -> int:
        return job.priority + (FIRM_RANK if job.queue_id in firm_queues else 0)

    return rank


def by_queue(versions: Sequence[Served]) -> Mapping[int, Served]:
    """Queue id → the version that it belongs to."""
    return {queue_id: served for served in versions for queue_id in served.queue_ids.values()}
