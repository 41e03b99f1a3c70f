"""Notices what the stages cannot say themselves: a model's code that does not end, and a broker gone deaf."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from batchyard.telemetry import log_event
from batchyard_consumers.executing import Task
from batchyard_consumers.pipeline import Pipeline
from batchyard_consumers.pools import by_queue
from batchyard_consumers.served import Served

DEAF_SECONDS = 10.0
"""Without a ticket before the broker is asked whether any wait there."""

log = logging.getLogger(__name__)


class Watchdog:
    """Looked after by the heartbeat's thread: `check` at every beat."""

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        waiting_tickets: Callable[[], int],
        reconnect: Callable[[], None],
        on_hang: Callable[[Task, Served], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pipeline = pipeline
        self._versions = by_queue(pipeline.versions)
        self._waiting_tickets = waiting_tickets
        self._reconnect = reconnect
        self._on_hang = on_hang
        self._clock = clock
        self._asked_at = clock()

    def check(self) -> None:
        """Look at both."""
        now = self._clock()
        for task in self._pipeline.executing.tasks:
            served = self._versions[task.jobs[0].queue_id]
            if now - task.since > served.settings.max_run_seconds:
                # A thread cannot be interrupted: the process ends.
                self._on_hang(task, served)
                return
        silent_since = max(self._pipeline.inbox.last_ticket_at, self._asked_at)
        if len(self._pipeline.inbox) == 0 and now - silent_since > DEAF_SECONDS:
            self._asked_at = now
            if self._waiting_tickets() > 0:
                log_event(log, "broker_deaf", level=logging.WARNING, silent_seconds=round(now - silent_since, 1))
                self._reconnect()
