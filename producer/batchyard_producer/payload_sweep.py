"""Payloads that nobody needs any more are given up, and their bytes deleted, by the process that leads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from batchyard.errors import Unavailable
from batchyard.logs import log_event
from batchyard.payloads import ObjectStore
from batchyard.settings import RetentionSettings
from batchyard.store.base import JobStore, Leftover
from batchyard.telemetry import DispatcherMetrics

STEP_PAYLOADS = 500
STEP_PAUSE_SECONDS = 0.2
"""Between the steps of one sweep: others write to the database meanwhile."""

log = logging.getLogger(__name__)


class PayloadSweep:
    """A thread beside the dispatcher's, which an object store that answers slowly must not hold up.

    Two that sweep at the same time, or one that dies at any moment, do no harm: see `batchyard.store.payloads`.
    """

    def __init__(
        self,
        store: JobStore,
        objects: ObjectStore,
        retention: RetentionSettings,
        *,
        leads: Callable[[], bool | None],
        every_seconds: float,
        metrics: DispatcherMetrics | None = None,
    ) -> None:
        self._store = store
        self._objects = objects
        self._unused_ms = round(retention.payload_seconds * 1000)
        self._leads = leads
        self._every_seconds = every_seconds
        self._metrics = metrics
        self._is_failing = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="batchyard-payloads", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop after the payload that is being deleted."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def sweep(self) -> None:
        """Step by step until nothing is left to be done now. Unavailable without a database."""
        deleted: list[int] = []
        while not self._stop.is_set():
            leftovers = self._store.sweep_payloads(
                deleted=deleted,
                uploaded_before_ms=self._store.now_ms() - self._unused_ms,
                limit=STEP_PAYLOADS,
            )
            if not leftovers:
                return
            deleted = self._delete(leftovers)
            self._stop.wait(STEP_PAUSE_SECONDS)

    def _run(self) -> None:
        while not self._stop.wait(self._every_seconds):
            if not self._leads():
                continue
            try:
                self.sweep()
            except Exception as error:  # noqa: BLE001  the thread must outlive every fault
                self._note(error)
            else:
                self._is_failing = False

    def _delete(self, leftovers: Sequence[Leftover]) -> list[int]:
        """Returns those whose bytes are gone; the others come again."""
        deleted: list[int] = []
        faults: list[Exception] = []
        for leftover in leftovers:
            if self._stop.is_set():
                break
            try:
                self._objects.delete(leftover.location)
            except Exception as fault:  # noqa: BLE001  one that cannot be deleted must not keep the others
                faults.append(fault)
            else:
                deleted.append(leftover.id)
        if faults:
            log_event(log, "payloads_not_deleted", level=logging.WARNING, count=len(faults), reason=str(faults[0]))
        if self._metrics is not None:
            self._metrics.deleted_payloads.labels("deleted").inc(len(deleted))
            self._metrics.deleted_payloads.labels("failed").inc(len(faults))
        return deleted

    def _note(self, error: Exception) -> None:
        """Said once per outage."""
        if not self._is_failing:
            self._is_failing = True
            unexpected = None if isinstance(error, Unavailable) else error
            level = logging.ERROR if unexpected else logging.WARNING
            log_event(log, "payload_sweep_failed", level=level, error=unexpected, reason=str(error))
