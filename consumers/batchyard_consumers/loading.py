"""Brings a model into memory, and tells the database what was found.

A model that cannot load does not stop the others: its queues are not claimed, the reason is stored for `status`, and it
is tried again with a growing pause.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

from batchyard.errors import BatchyardError, ModelLoadError, Unavailable
from batchyard.flight_recorder import FlightRecorder
from batchyard.inputs import Validator
from batchyard.interpreter import answer_promptly
from batchyard.model import ContinuousModel, Model
from batchyard.store.base import JobStore
from batchyard.telemetry import log_event
from batchyard_consumers.device import run_alone, shares_of
from batchyard_consumers.footprint import Scale
from batchyard_consumers.host_copies import size_of, to_device
from batchyard_consumers.meter import Meter
from batchyard_consumers.precision import settle
from batchyard_consumers.runtimes import make_model, words
from batchyard_consumers.runtimes.sources import damage, digest_of, verify, without_pickle
from batchyard_consumers.served import Served

WARM_UP_SECONDS = 1.0
"""Spent on measuring a model before its first job; the rest is learned from real batches."""

FIRST_REST_SECONDS, LONGEST_REST_SECONDS = 5.0, 3600.0
"""For a model that has ended two processes while it was loaded; twice as long after each further one."""

log = logging.getLogger(__name__)


class Loader:
    """Loads the versions that a consumer serves, one at a time. Owned by the thread of `Residents`."""

    def __init__(
        self,
        *,
        store: JobStore,
        device: str,
        meter: Meter,
        on_loaded: Callable[[Served], None],
        recorder: FlightRecorder,
    ) -> None:
        self._store = store
        self._recorder = recorder
        self._device = device
        self._meter = meter
        self._on_loaded = on_loaded

    def refuse(self, served: Served, *, reason: str) -> None:
        """A version will not be loaded here; say why."""
        self._failed(served, ModelLoadError(f"{served.name} {reason}"))

    def rest(self, served: Served) -> float:
        """Seconds to let pass before a version is loaded that has ended one process after the other; refuses it for so
        long. One end alone may have had any reason."""
        ends = self._recorder.load_ends(served.version_id)
        if ends.times < 2:
            return 0.0
        pause = min(FIRST_REST_SECONDS * 2.0 ** (ends.times - 2), LONGEST_REST_SECONDS) - ends.seconds_ago
        if pause <= 0:
            return 0.0
        again = f"it is tried again in {math.ceil(pause)} s"
        self.refuse(
            served, reason=f"cannot load: the process {ends.last} while it did, {ends.times} times now; {again}"
        )
        return pause

    def evicted(self, served: Served) -> None:
        """Note that a version has left."""
        self._meter.metrics.model_resident.labels(served.name).set(0)

    def attempt(self, served: Served) -> bool:
        """Load and report one version; whether it serves now."""
        try:
            with self._recorder.loading(served.version_id):
                load(served, device=self._device, report=lambda *found: self._report(served, *found))
        except Unavailable as away:
            log_event(log, "model_report_failed", level=logging.WARNING, model=served.name, reason=away.message)
            return False
        except BatchyardError as error:
            self._failed(served, error)
            return False
        answer_promptly()
        self._meter.metrics.model_load_seconds.labels(served.name).set(served.load_seconds)
        log_event(
            log,
            "model_loaded",
            model=served.name,
            device=self._device,
            seconds=round(served.load_seconds, 3),
            budget=served.speed.budget,
            dtype=served.dtype,
        )
        self._is_there(served)
        return True

    def bring_back(self, served: Served, model: Model) -> bool:
        """Install a version whose weights were kept in the machine's memory; whether it serves now."""
        started = time.perf_counter()
        try:
            to_device(model, device=self._device)
            if (samples := _samples(model)) is not None:
                run_alone(model, samples(1), self._device)
        except Exception as error:  # noqa: BLE001  whatever it is, loading anew mends it
            log_event(log, "model_return_failed", level=logging.WARNING, model=served.name, error=error)
            return False
        finally:
            shares_of(self._device).leave()
        served.return_seconds = time.perf_counter() - started
        served.install(model, load_seconds=served.load_seconds)
        self._meter.metrics.model_return_seconds.labels(served.name).set(served.return_seconds)
        log_event(log, "model_returned", model=served.name, seconds=round(served.return_seconds, 3))
        self._is_there(served)
        return True

    def _is_there(self, served: Served) -> None:
        self._meter.metrics.model_resident.labels(served.name).set(1)
        self._on_loaded(served)

    def _report(self, served: Served, model: Model, digest: str, load_seconds: float) -> None:
        self._store.report_version(
            served.version_id,
            digest=digest,
            input_schema=model.input_schema,
            cost_unit=model.cost_unit,
            load_seconds=load_seconds,
        )

    def _failed(self, served: Served, error: BatchyardError) -> None:
        served.load_error = error.message
        self._meter.metrics.model_resident.labels(served.name).set(0)
        self._meter.metrics.model_load_failures.labels(served.name).inc()
        log_event(
            log,
            "model_load_failed",
            level=logging.ERROR,
            model=served.name,
            reason=error.message,
            error=error.__cause__,
        )
        try:
            self._store.report_load_error(served.version_id, message=error.message)
        except Unavailable as away:
            log_event(log, "model_report_failed", level=logging.WARNING, model=served.name, reason=away.message)


Report = Callable[[Model, str, float], None]
"""Told the loaded model, its digest and the seconds it took; raises where the version may not serve."""


def load(served: Served, *, device: str, report: Report) -> None:
    """Load, warm and install one version. ModelLoadError, or what `report` raises."""
    model = make_model(served.settings)
    _verify(served, model)
    scale = Scale(device)
    # Hashing releases the interpreter's lock: on a second core it costs no time.
    with ThreadPoolExecutor(1, thread_name_prefix="digest") as aside:
        digest: Future[str] = aside.submit(digest_of, served.settings, model)
        started = time.perf_counter()
        try:
            # The code of a class of the user's own is theirs to trust; what the others read is data.
            with nullcontext() if ":" in served.settings.runtime else without_pickle():
                model.load(device)
            served.dtype = settle(model, name=served.name, device=device)
        except (ModelLoadError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a model may raise anything; it is named and the others go on
            raise ModelLoadError(f"{served.name} cannot load: {words(error)}{damage(model)}") from error
        seconds = time.perf_counter() - started
        try:
            found = digest.result()
        except OSError as error:
            raise ModelLoadError(f"{served.name}: its files cannot be read: {words(error)}") from error
    served.validator = _validator(served, model)
    scale.loaded()
    try:
        largest = _warm(served, model, device)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # as above
        raise ModelLoadError(f"{served.name} loads, but its first batch fails: {words(error)}") from error
    finally:
        shares_of(device).leave()
    served.footprint = scale.footprint(weights=size_of(model), cost=largest)
    report(model, found, seconds)
    served.install(model, load_seconds=seconds)


def _verify(served: Served, model: Model) -> None:
    try:
        verify(served.settings, model)
    except OSError as error:
        raise ModelLoadError(f"{served.name}: its files cannot be read: {words(error)}") from error


def _validator(served: Served, model: Model) -> Validator | None:
    if not model.input_schema:
        return None
    try:
        return Validator(model.input_schema)
    except ValueError as error:
        raise ModelLoadError(f"{served.name}: its input_schema is no JSON Schema: {error}") from error


def _warm(served: Served, model: Model, device: str) -> int:
    """Run samples of growing size where the model has any, from which its speed takes the line and the budget; the cost
    of the largest pass, padding included, 0 without any."""
    samples = _samples(model)
    if samples is None:
        return 0
    give_up = time.perf_counter() + WARM_UP_SECONDS
    items = samples(1)
    served.speed.expect(mean_cost=model.cost(items[0]))
    run_alone(model, items, device)
    largest = model.cost(items[0])
    while not served.speed.is_settled and time.perf_counter() < give_up:
        items = samples(served.speed.budget)
        costs = [model.cost(item) for item in items]
        seconds = run_alone(model, items, device)
        padded = max(costs) * len(costs)
        largest = max(largest, padded)
        share = shares_of(device).of(model)
        served.speed.observe(padded_cost=padded, cost=sum(costs), jobs=len(items), seconds=seconds, share=share)
    return largest


def _samples(model: Model) -> Callable[[int], list[Any]] | None:
    """Makes items of about so much cost, where the model or its schema has any."""
    samples: Callable[[int], list[Any]] | None = getattr(model, "samples", None)
    return samples or _from_examples(model)


def _from_examples(model: Model) -> Callable[[int], list[Any]] | None:
    """Samples made of the `examples` in the input schema, for a model that brings none of its own."""
    examples = model.input_schema.get("examples")
    if not isinstance(examples, list) or not examples or isinstance(model, ContinuousModel):
        return None

    def items(count: int) -> list[Any]:
        # Copies, for a model may change what it is given.
        made = list(model.preprocess([copy.deepcopy(examples[n % len(examples)]) for n in range(count)], {}))
        for item in made:
            if isinstance(item, Exception):
                raise item
        return made

    mean_cost = sum(model.cost(item) for item in items(len(examples))) / len(examples)
    return lambda cost: items(max(1, round(cost / max(1.0, mean_cost))))
