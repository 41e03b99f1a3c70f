"""Renews the consumer's lease, tells what it does, hears of cancellations; and learns how fast it serves."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from batchyard.errors import Unavailable
from batchyard.store.base import JobStore, Renewal
from batchyard.telemetry import log_event
from batchyard_consumers.channels import Closed
from batchyard_consumers.pipeline import Pipeline
from batchyard_consumers.served import Served

LONGEST_INTERVAL_SECONDS = 2.0
REPORT_SECONDS = 5.0
PATH_SECONDS_PER_JOB = 10e-6
"""A job costs at least this on its way through any consumer, however fast the model."""

log = logging.getLogger(__name__)


class Heartbeat:
    """One renewal a third of the lease, or every two seconds; `run` is the body of its thread.

    While the database is away it goes on trying: whoever reaps waits for a full lease of its own after an outage.
    """

    def __init__(
        self,
        *,
        store: JobStore,
        pipeline: Pipeline,
        lease_seconds: float,
        register: Callable[[], int],
        stats: Callable[[], dict[str, Any]],
        beat: Callable[[], None],
    ) -> None:
        self._store = store
        self._pipeline = pipeline
        self._lease_ms = int(lease_seconds * 1000)
        self._interval = min(lease_seconds / 3, LONGEST_INTERVAL_SECONDS)
        self._register = register
        self._stats = stats
        self._beat = beat
        self._wake = threading.Event()
        self._is_stopped = False
        self.state = "starting"
        """What is told next: starting, ready, draining."""
        self.zone = ""
        self.is_preempted = False

    def run(self) -> None:
        """Renew until stopped (raises Closed)."""
        while not self._is_stopped:
            self.renew()
            self._beat()
            self._wake.wait(self._interval)
            self._wake.clear()
        raise Closed

    def tell(self, state: str) -> None:
        """Change the state and renew at once."""
        self.state = state
        self._wake.set()

    def stop(self) -> None:
        self._is_stopped = True
        self._wake.set()

    def report(self) -> Renewal:
        """Renew and tell; Unavailable where the database is away. From any thread."""
        return self._store.renew(
            self._pipeline.owner,
            lease_ms=self._lease_ms,
            state=self.state,
            stats=self._stats(),
            zone=self.zone,
            is_preempted=self.is_preempted,
        )

    def renew(self) -> None:
        """One renewal, and what follows from its answer."""
        owner = self._pipeline.owner
        try:
            renewal = self.report()
            if not renewal.alive and not self._is_stopped:
                log_event(log, "registration_lost", level=logging.WARNING, owner=owner)
                self._pipeline.restart(self._register())
            elif renewal.cancelled:
                self._pipeline.cancel(frozenset(renewal.cancelled))
        except Unavailable as away:
            log_event(log, "heartbeat_failed", level=logging.WARNING, reason=away.message)


class SpeedReporter:
    """Publishes what a version's jobs take on this consumer. Owned by the heartbeat's thread.

    What counts is the whole consumer: where the device waits for the rest of the path, a job takes longer than its
    share of the device. The factor between the two is read while more work is at hand than the stages have taken in.
    """

    def __init__(self, store: JobStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._reported: dict[str, tuple[float, float]] = {}
        self._next_at = 0.0
        self._factor = 1.0
        self._last: tuple[float, float, bool] | None = None

    def sample(self, *, busy_seconds: float, is_saturated: bool) -> None:
        """Compare the device's time with the clock's; `busy_seconds` is the sum so far."""
        now = self._clock()
        if self._last is not None:
            then, busy_then, was_saturated = self._last
            busy = busy_seconds - busy_then
            if was_saturated and is_saturated and busy > 0:
                self._factor = max(1.0, (now - then) / busy)
        self._last = (now, busy_seconds, is_saturated)

    def told(self) -> dict[str, float]:
        """By model, the seconds per unit of cost that were reported last."""
        return {name: seconds for name, (_, seconds) in self._reported.items()}

    def report(self, versions: Sequence[Served]) -> None:
        """Store what has changed by more than a tenth."""
        if self._clock() < self._next_at:
            return
        self._next_at = self._clock() + REPORT_SECONDS
        for served in versions:
            speed = served.speed
            if not speed.batches or speed.seconds_per_unit is None or speed.units_per_byte is None:
                continue
            seconds = max(speed.seconds_per_unit * self._factor, PATH_SECONDS_PER_JOB / speed.mean_cost)
            found = (speed.units_per_byte, seconds)
            known = self._reported.get(served.name)
            if known is None or any(abs(new - old) > 0.1 * old for new, old in zip(found, known, strict=True)):
                self._store.report_speed(served.version_id, units_per_byte=found[0], seconds_per_unit=seconds)
                self._reported[served.name] = found
