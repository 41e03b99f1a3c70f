"""The device's threads: one forward pass after the other, and the search for the job that makes one fail.

A GPU has one. A CPU is divided into shares, each with a thread and some of the cores, for the models whose passes may
run at the same time: a pass that is spread over all cores waits at every operation for the slowest of them, a pass on
one core waits for nobody. The first thread runs the other models as well, on all cores.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from batchyard.devices import VISIBLE
from batchyard.errors import RetryableModelError
from batchyard.jobs import ClaimedJob, State
from batchyard.model import Model
from batchyard_consumers.channels import Channel, Closed
from batchyard_consumers.executing import Executing
from batchyard_consumers.failures import FailureLog, caught, describe, is_out_of_memory, loses_device
from batchyard_consumers.held import Batch, Finished
from batchyard_consumers.items import Items
from batchyard_consumers.meter import Meter
from batchyard_consumers.pools import Pools
from batchyard_consumers.retries import RetryPolicy

SHORT_UUID = r"((?:GPU|MIG)-[0-9a-f]{8})-.*"
MOST_SHARES = 4
"""Of a CPU; beyond, the cores of a share work on one pass together."""


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How a device is divided between passes that run at the same time."""

    count: int
    cores: int
    """Threads that torch spreads a pass over where it has the device to itself."""

    def of(self, model: Model) -> float:
        """The part of the device that one pass has."""
        return 1.0 / self.count if model.concurrent_forward else 1.0

    def settle(self, model: Model) -> None:
        """Give the calling thread's passes the cores that they may use: torch keeps that number per thread."""
        self._use(max(1, self.cores // self.count) if model.concurrent_forward else self.cores)

    def leave(self) -> None:
        """Give the calling thread all cores again."""
        self._use(self.cores)

    def _use(self, cores: int) -> None:
        if self.count > 1 and torch.get_num_threads() != cores:
            torch.set_num_threads(cores)


@cache
def shares_of(device: str) -> Shares:
    """Asked first before any thread has settled; the number of cores is then what torch, or OMP_NUM_THREADS, says."""
    cores = torch.get_num_threads()
    return Shares(count=min(MOST_SHARES, cores) if device == "cpu" else 1, cores=cores)


@dataclass(frozen=True, kw_only=True)
class Running:
    """A batch on the device now."""

    batch: Batch
    since: float
    """time.monotonic(); infinity while it waits for a suspect to be through."""
    predicted_seconds: float | None

    @property
    def ends_at(self) -> float:
        """As predicted; where nothing is known of the model, at once."""
        return self.since + self.predicted_seconds if self.predicted_seconds is not None else 0.0


OnLost = Callable[[int, Sequence[ClaimedJob], Exception], None]
"""Told the owner and the jobs that the device was lost with, see `failures.loses_device`; any thread."""


class Device:
    """Takes batches from the pools, runs them, and hands the outputs on. `running` may be read by any thread."""

    def __init__(
        self,
        *,
        name: str,
        shares: Shares,
        pools: Pools,
        outputs: Channel[Batch],
        finished: Channel[Finished],
        retries: RetryPolicy,
        items: Items,
        executing: Executing,
        meter: Meter,
        on_lost: OnLost,
    ) -> None:
        self.name = name
        self.shares = shares
        self._running: list[Running | None] = [None] * self.shares.count
        self._learning = threading.Lock()
        self._pools = pools
        self._outputs = outputs
        self._finished = finished
        self._retries = retries
        self._items = items
        self._executing = executing
        self._meter = meter
        self._on_lost = on_lost
        self._failures = FailureLog()

    @property
    def running(self) -> list[Running]:
        """The batches on the device now."""
        return [running for running in self._running if running is not None]

    def run(self, number: int) -> None:
        """Run batches until the pools are closed (raises Closed): the body of the thread of this share."""
        while True:
            batch = self._pools.next(helps=number > 0)
            self._running[number] = self._awaited(batch)
            try:
                renewed = self._renewed(batch) if batch.is_split else batch
                self._running[number] = self._awaited(renewed)
                if renewed.jobs:
                    self._run(number, renewed)
                else:
                    self.through(batch)
            finally:
                self._running[number] = None

    def _run(self, number: int, batch: Batch) -> None:
        with self._executing.of(batch.owner, batch.jobs):
            self._running[number] = replace(self._awaited(batch), since=time.monotonic())
            error = self._forward(batch)
        self._hand_on(batch, error)

    def _awaited(self, batch: Batch) -> Running:
        predicted_seconds = batch.served.speed.seconds_for(batch.padded_cost)
        return Running(batch=batch, since=math.inf, predicted_seconds=predicted_seconds)

    def _hand_on(self, batch: Batch, error: Exception | None) -> None:
        self._meter.ran(batch)
        # Past the `except` block of `_forward`, since a traceback would keep the tensors of the failed pass alive.
        if error is None:
            if not batch.is_split:
                self._learn(batch)
            self._outputs.put(batch)
        else:
            self._failures.note(model=batch.served.name, stage="forward", error=error)
            self.fail(batch, error)
            if loses_device(error):
                raise Closed
            # Last, so that a version whose batch is about to be put back in halves does not seem to be through.
            self.through(batch)
        self._pools.charge(batch.served, seconds=batch.device_seconds)

    def through(self, batch: Batch) -> None:
        """A batch needs its model no more. Any thread."""
        if not batch.served.is_continuous:
            self._pools.through(batch.served)

    def fail(self, batch: Batch, error: Exception) -> None:
        """Split a batch that failed, or, where it is one job or the model asks for it, end its jobs. Any thread."""
        name = batch.served.name
        if loses_device(error):
            self.lost(batch.owner, batch.jobs, error)
        elif is_out_of_memory(error) and len(batch.jobs) > 1:
            self._free_memory()
            self._shrink(batch)
            self._meter.metrics.batch_splits.labels(name, "out_of_memory").inc()
            self._pools.put_back(batch.halves())
        elif len(batch.jobs) > 1 and not isinstance(error, RetryableModelError):
            self._meter.metrics.batch_splits.labels(name, "failure").inc()
            self._pools.put_back(batch.halves())
        else:
            if is_out_of_memory(error):
                self._forgive(batch)
            self._end(batch, error)

    def lost(self, owner: int, jobs: Sequence[ClaimedJob], error: Exception) -> None:
        """Nothing can run here any more: the process ends, and these jobs take the blame. Any thread."""
        self._on_lost(owner, jobs, error)

    def _shrink(self, batch: Batch) -> None:
        """Once for a whole batch: its parts say nothing about the budget, for one job may be too large for any."""
        with self._learning:
            if batch.before_shrinking is None:
                batch.before_shrinking = batch.served.speed.shrink(batch.padded_cost)

    def _forgive(self, batch: Batch) -> None:
        """One job is too large by itself: the batch that it was in was not."""
        with self._learning:
            if batch.before_shrinking is not None:
                batch.served.speed.forgive(batch.before_shrinking)

    def _renewed(self, batch: Batch) -> Batch:
        """Part of a batch that failed, as if it had never been on the device: the pass may have changed its items. What
        cannot be prepared once more ends here."""
        with self._executing.of(batch.owner, batch.jobs):
            batch.items = self._items.of(batch.served, batch.jobs, model=batch.model)
        kept = [place for place, item in enumerate(batch.items) if not isinstance(item, Exception)]
        if len(kept) == len(batch.jobs):
            return batch
        for place, item in enumerate(batch.items):
            if isinstance(item, Exception):
                self._end(batch.part([place]), item)
        return batch.part(kept)

    def _end(self, batch: Batch, error: Exception) -> None:
        told = describe(error)
        outcomes = [
            self._retries.outcome(job, told, cost=cost, device_us=device_us)
            for job, cost, device_us in zip(batch.jobs, batch.costs, batch.device_us(), strict=True)
        ]
        for state in (State.FAILED, State.WAITING):
            self._meter.finished(batch.served, state, sum(outcome.state is state for outcome in outcomes))
        self._finished.put(Finished(owner=batch.owner, outcomes=outcomes))

    def _forward(self, batch: Batch) -> Exception | None:
        """Run the pass and time it; the outputs, or what it raised."""
        model = batch.model
        batch.share = self.shares.of(model)
        self.shares.settle(model)
        started = time.perf_counter()
        try:
            with torch.inference_mode():
                batch.outputs = model.forward(batch.items)
            self._synchronize()
        except BaseException as error:  # noqa: BLE001  a model may raise anything; it fails jobs, not the stage
            batch.seconds = time.perf_counter() - started
            failure = caught(error)
            return failure.with_traceback(None) if is_out_of_memory(failure) else failure
        batch.seconds = time.perf_counter() - started
        return None

    def _learn(self, batch: Batch) -> None:
        # Bytes of some jobs spread over the batch stand for all.
        some = slice(None, None, 1 + len(batch.jobs) // 64)
        known = sum([len(job.input) for job in batch.jobs[some]]) / max(1, sum(batch.costs[some]))
        with self._learning:
            batch.served.speed.observe(
                padded_cost=batch.padded_cost,
                cost=batch.cost,
                jobs=len(batch.jobs),
                seconds=batch.seconds,
                share=batch.share,
                input_bytes=known * batch.cost,
            )

    def _synchronize(self) -> None:
        """Wait for the device, so that the time is its own; a CPU has nothing to wait for."""
        if self.name.startswith("cuda"):
            torch.cuda.synchronize(self.name)

    def _free_memory(self) -> None:
        if self.name.startswith("cuda"):
            torch.cuda.empty_cache()

    def memory(self) -> dict[str, int]:
        """Bytes `used` and `total` on the device; of a CPU nothing."""
        if not self.name.startswith("cuda"):
            return {}
        free, total = torch.cuda.mem_get_info(self.name)
        return {"used": total - free, "total": total}


def choose_device(wanted: str) -> str:
    """The torch device for a pool's `device`: "auto" is the first CUDA device where there is one, else the CPU."""
    if wanted != "auto":
        return wanted
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def called(device: str, environ: Mapping[str, str] = os.environ) -> str:
    """A device as people tell it from the others of its machine; `cuda:GPU-5d5ba0d6` where it is the only one that is
    visible, else its torch name."""
    visible = environ.get(VISIBLE, "")
    if not device.startswith("cuda") or not visible or "," in visible:
        return device
    return f"cuda:{re.sub(SHORT_UUID, lambda found: found[1], visible)}"


def run_alone(model: Model, items: Sequence[Any], device: str) -> float:
    """One forward and postprocess outside the pipeline, for warm-up; returns the seconds of the forward pass."""
    shares_of(device).settle(model)
    started = time.perf_counter()
    with torch.inference_mode():
        outputs = model.forward(items)
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    model.postprocess(outputs)
    return seconds
