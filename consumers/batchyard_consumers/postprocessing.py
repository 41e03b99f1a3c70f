"""Outputs become results, encoded as they will be stored."""

from __future__ import annotations

import time
from collections.abc import Mapping, Set
from typing import Any, Protocol

from batchyard.errors import BadOutput
from batchyard.jobs import Outcome, State
from batchyard.results import encode_all
from batchyard_consumers.channels import Channel
from batchyard_consumers.executing import Executing
from batchyard_consumers.failures import FailureLog, caught, describe
from batchyard_consumers.held import Batch, Finished
from batchyard_consumers.meter import Meter
from batchyard_consumers.retries import RetryPolicy


class Splitter(Protocol):
    """Where a batch goes whose postprocess failed, and who hears that it is through; see `Device`."""

    def fail(self, batch: Batch, error: Exception) -> None: ...
    def through(self, batch: Batch) -> None: ...


class Postprocessor:
    """The stage behind the device; `run` is the body of its thread."""

    def __init__(
        self,
        *,
        outputs: Channel[Batch],
        finished: Channel[Finished],
        device: Splitter,
        retries: RetryPolicy,
        executing: Executing,
        meter: Meter,
    ) -> None:
        self._outputs = outputs
        self._finished = finished
        self._device = device
        self._retries = retries
        self._executing = executing
        self._meter = meter
        self._failures = FailureLog()

    def run(self) -> None:
        """Work until the channel is closed and empty (raises Closed)."""
        while True:
            batch = self._outputs.take()
            if batch is not None:
                self._finish(batch)
                self._device.through(batch)

    def _finish(self, batch: Batch) -> None:
        started = time.perf_counter()
        try:
            with self._executing.of(batch.owner, batch.jobs):
                encoded = self._encoded(batch)
        except BaseException as error:  # noqa: BLE001  a model may raise anything; it fails jobs, not the stage
            self._failures.note(model=batch.served.name, stage="postprocess", error=error)
            failure = caught(error)
        else:
            outcomes = self._outcomes(batch, encoded)
            seconds = time.perf_counter() - started
            self._meter.metrics.postprocess_seconds.labels(batch.served.name).observe(seconds)
            self._finished.put(Finished(owner=batch.owner, outcomes=outcomes))
            return
        batch.outputs = None
        self._device.fail(batch, failure)

    def _encoded(self, batch: Batch) -> list[tuple[int, bytes] | BadOutput]:
        """A result for each job, as it will be stored, of a sequence, or an array or tensor whose rows they are."""
        results: Any = batch.model.postprocess(batch.outputs)
        batch.outputs = None
        if results is None or isinstance(results, str | bytes | Mapping | Set):
            # A text has a length too, and a dict: their characters and keys are nobody's results.
            raise BadOutput(f"the model returned {_kind(results)} where a list of results, one per input, is expected")
        if not hasattr(results, "__len__"):
            results = list(results)
        count = len(results)
        encoded = encode_all(results) if count == len(batch.jobs) else []
        if len(encoded) != len(batch.jobs):
            raise BadOutput(f"the model returned {count} results for {len(batch.jobs)} inputs")
        return encoded

    def _outcomes(self, batch: Batch, encoded: list[tuple[int, bytes] | BadOutput]) -> list[Outcome]:
        succeeded = State.SUCCEEDED
        outcomes: list[Outcome] = []
        failed = 0
        for job, cost, row, device_us in zip(batch.jobs, batch.costs, encoded, batch.device_us(), strict=True):
            if isinstance(row, tuple):
                outcomes.append(Outcome(job, succeeded, row[1], row[0], None, cost, device_us))
            else:
                failed += 1
                outcomes.append(self._retries.outcome(job, describe(row), cost=cost, device_us=device_us))
        self._meter.finished(batch.served, succeeded, len(outcomes) - failed)
        if failed:
            self._meter.finished(batch.served, State.FAILED, failed)
        return outcomes


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
