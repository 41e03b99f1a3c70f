"""The device's thread: one forward pass after the other, and the search for the job that makes one fail."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from batchyard.errors import RetryableModelError
from batchyard.jobs import State
from batchyard.model import Model
from batchyard_consumers.channels import Channel
from batchyard_consumers.executing import Executing
from batchyard_consumers.failures import FailureLog, describe, is_out_of_memory
from batchyard_consumers.held import Batch, Finished
from batchyard_consumers.meter import Meter
from batchyard_consumers.pools import Pools
from batchyard_consumers.retries import RetryPolicy


@dataclass(frozen=True, kw_only=True)
class Running:
    """The batch on the device now."""

    batch: Batch
    since: float
    """time.monotonic(); infinity while it waits for a suspect to be through."""
    predicted_seconds: float | None


class Device:
    """Takes batches from the pools, runs them, and hands the outputs on. `running` may be read by any thread."""

    def __init__(
        self,
        *,
        name: str,
        pools: Pools,
        outputs: Channel[Batch],
        finished: Channel[Finished],
        retries: RetryPolicy,
        executing: Executing,
        meter: Meter,
    ) -> None:
        self.name = name
        self.running: Running | None = None
        self._pools = pools
        self._outputs = outputs
        self._finished = finished
        self._retries = retries
        self._executing = executing
        self._meter = meter
        self._failures = FailureLog()

    def run(self) -> None:
        """Run batches until the pools are closed (raises Closed)."""
        while True:
            batch = self._pools.next()
            predicted_seconds = batch.served.speed.seconds_for(batch.padded_cost)
            self.running = Running(batch=batch, since=math.inf, predicted_seconds=predicted_seconds)
            try:
                self._run(batch)
            finally:
                self.running = None

    def _run(self, batch: Batch) -> None:
        with self._executing.of(batch.owner, batch.jobs):
            assert self.running is not None
            self.running = replace(self.running, since=time.monotonic())
            error = self._forward(batch)
        self._pools.charge(batch.served, seconds=batch.seconds)
        self._meter.ran(batch)
        # Past the `except` block of `_forward`, since a traceback would keep the tensors of the failed pass alive.
        if error is None:
            if not batch.is_split:
                self._learn(batch)
            self._outputs.put(batch)
        else:
            self._failures.note(model=batch.served.name, stage="forward", error=error)
            self.fail(batch, error)

    def fail(self, batch: Batch, error: Exception) -> None:
        """Split a batch that failed, or, where it is one job or the model asks for it, end its jobs. Any thread."""
        name = batch.served.name
        if is_out_of_memory(error) and len(batch.jobs) > 1:
            self._free_memory()
            batch.served.speed.shrink()
            self._meter.metrics.batch_splits.labels(name, "out_of_memory").inc()
            self._pools.put_back(batch.halves())
        elif len(batch.jobs) > 1 and not isinstance(error, RetryableModelError):
            self._meter.metrics.batch_splits.labels(name, "failure").inc()
            self._pools.put_back(batch.halves())
        else:
            self._end(batch, error)

    def _end(self, batch: Batch, error: Exception) -> None:
        outcomes = [self._retries.outcome(job, describe(error)) for job in batch.jobs]
        for state in (State.FAILED, State.WAITING):
            self._meter.finished(batch.served, state, sum(outcome.state is state for outcome in outcomes))
        self._finished.put(Finished(owner=batch.owner, outcomes=outcomes))

    def _forward(self, batch: Batch) -> Exception | None:
        """Run the pass and time it; the outputs, or what it raised."""
        model = batch.served.model
        assert model is not None
        started = time.perf_counter()
        try:
            with torch.inference_mode():
                batch.outputs = model.forward(batch.items)
            self._synchronize()
        except Exception as error:  # noqa: BLE001  a model may raise anything; it fails jobs, not the stage
            batch.seconds = time.perf_counter() - started
            return error.with_traceback(None) if is_out_of_memory(error) else error
        batch.seconds = time.perf_counter() - started
        return None

    def _learn(self, batch: Batch) -> None:
        # Bytes of some jobs spread over the batch stand for all.
        some = slice(None, None, 1 + len(batch.jobs) // 64)
        known = sum([len(job.input) for job in batch.jobs[some]]) / max(1, sum(batch.costs[some]))
        batch.served.speed.observe(
            padded_cost=batch.padded_cost,
            cost=batch.cost,
            jobs=len(batch.jobs),
            seconds=batch.seconds,
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


def run_alone(model: Model, items: Sequence[Any], device: str) -> float:
    """One forward and postprocess outside the pipeline, for warm-up; returns the seconds of the forward pass."""
    started = time.perf_counter()
    with torch.inference_mode():
        outputs = model.forward(items)
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    model.postprocess(outputs)
    return seconds
