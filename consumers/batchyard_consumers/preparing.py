"""The stage that makes items of claimed jobs, on CPU threads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from batchyard.jobs import ClaimedJob, Outcome, State
from batchyard_consumers.channels import Channel
from batchyard_consumers.executing import Executing
from batchyard_consumers.failures import caught, describe
from batchyard_consumers.held import Chunk, Finished, Holding
from batchyard_consumers.items import Items
from batchyard_consumers.meter import Meter
from batchyard_consumers.pools import Pools
from batchyard_consumers.retries import RetryPolicy
from batchyard_consumers.served import Served
from batchyard_consumers.sharing import Sharing

FIRST_PIECE_JOBS, PIECE_JOBS, PIECE_SECONDS = 32, 256, 0.5
"""Prepared at a time where that is work, the first of a model and later ones, and for about how long: the first reach
the device while the rest is prepared, and what hangs is told from what is much."""


class Preparer:
    """The preprocessing stage; `run` is the body of each of its threads."""

    def __init__(
        self,
        *,
        chunks: Channel[Chunk],
        pools: Pools,
        finished: Channel[Finished],
        holding: Holding,
        retries: RetryPolicy,
        items: Items,
        sharing: Sharing,
        executing: Executing,
        meter: Meter,
    ) -> None:
        self._chunks = chunks
        self._pools = pools
        self._finished = finished
        self._holding = holding
        self._retries = retries
        self._items = items
        self._sharing = sharing
        self._executing = executing
        self._meter = meter
        self._seconds_per_job: dict[str, float] = {}
        """By version, of the last piece."""
        self.returned: list[tuple[int, Sequence[ClaimedJob]]] = []
        """Jobs that came too late for the pools, with their owner; for a drain to hand back."""

    def run(self) -> None:
        """Prepare until the channel is closed and empty (raises Closed)."""
        while True:
            chunk = self._chunks.take()
            if chunk is None or not self._sharing.by_input(chunk):
                continue
            left = _suspects_last(chunk)
            while left:
                if self._pools.is_closed:
                    self._return(chunk, left)
                    break
                size = self._piece(chunk.served, left)
                piece, left = left[:size], left[size:]
                self._prepare(chunk, piece)

    def _piece(self, served: Served, left: Sequence[ClaimedJob]) -> int:
        """How many jobs to prepare at a time: a suspect alone; all where preparing runs no code of the model."""
        if served.is_plain and served.is_level:
            return len(left)
        if left[0].suspect:
            return 1
        seconds = self._seconds_per_job.get(served.name)
        most = FIRST_PIECE_JOBS if seconds is None else max(1, min(PIECE_JOBS, int(PIECE_SECONDS / seconds)))
        return next((place for place, job in enumerate(left[:most]) if job.suspect), min(most, len(left)))

    def _prepare(self, chunk: Chunk, jobs: Sequence[ClaimedJob]) -> None:
        started, count, served = time.perf_counter(), len(jobs), chunk.served
        if served.is_plain and served.is_level:
            items, costs = self._items.of(served, jobs), [1] * len(jobs)
            cost_faults: dict[int, Exception] = {}
        else:
            with self._executing.of(chunk.owner, jobs):
                items = self._items.of(served, jobs)
                costs, cost_faults = ([1] * len(items), {}) if served.is_level else _costs(served, items)
        faults = {i: item for i, item in enumerate(items) if isinstance(item, Exception)} | cost_faults
        if faults:
            self._fail(chunk, [(jobs[i], fault) for i, fault in faults.items()])
            kept = [i for i in range(len(jobs)) if i not in faults]
            jobs, items, costs = [jobs[i] for i in kept], [items[i] for i in kept], [costs[i] for i in kept]
        seconds = time.perf_counter() - started
        self._seconds_per_job[served.name] = max(seconds / count, 1e-9)
        self._meter.preprocessed(served, seconds)
        jobs, items, costs = self._sharing.by_item(chunk, jobs, items, costs)
        if jobs and not self._pools.add(served, jobs, items, costs, owner=chunk.owner):
            self._return(chunk, jobs)

    def _return(self, chunk: Chunk, jobs: Sequence[ClaimedJob]) -> None:
        """Too late for a batch: a drain has begun, or the registration that they were claimed under is over."""
        self._holding.left_pool(chunk.served, len(jobs))
        self._holding.let_go(len(jobs))
        self.returned.append((chunk.owner, jobs))

    def _fail(self, chunk: Chunk, failed: Sequence[tuple[ClaimedJob, Exception]]) -> None:
        outcomes: list[Outcome] = [self._retries.outcome(job, describe(fault)) for job, fault in failed]
        self._holding.left_pool(chunk.served, len(outcomes))
        for state in (State.FAILED, State.WAITING):
            self._meter.finished(chunk.served, state, sum(outcome.state is state for outcome in outcomes))
        self._finished.put(Finished(owner=chunk.owner, outcomes=outcomes))


def _suspects_last(chunk: Chunk) -> Sequence[ClaimedJob]:
    suspects = [job for job in chunk.jobs if job.suspect]
    return [*(job for job in chunk.jobs if not job.suspect), *suspects] if suspects else chunk.jobs


def _costs(served: Served, items: Sequence[Any]) -> tuple[list[int], dict[int, Exception]]:
    """Exact costs, and the items that `cost` raises on; items that have failed before cost nothing."""
    if not any(isinstance(item, Exception) for item in items):
        try:
            return served.costs(items), {}
        except BaseException:  # noqa: BLE001  again, one by one, to know which
            pass
    costs, faults = [0] * len(items), {}
    for place, item in enumerate(items):
        if not isinstance(item, Exception):
            try:
                costs[place] = served.costs([item])[0]
            except BaseException as error:  # noqa: BLE001  a model may raise anything; it fails this item
                faults[place] = caught(error)
    return costs, faults
