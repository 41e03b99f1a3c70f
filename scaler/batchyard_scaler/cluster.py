"""Pools in a cluster: decisions written down for KEDA to fetch; it starts and ends the consumers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from batchyard.settings import PoolSettings, Settings
from batchyard.store.base import ConsumerInfo, JobStore
from batchyard.telemetry import log_event
from batchyard_scaler.sizing import Sizer, look_until

LOOK_SECONDS = 1.0
"""KEDA asks every five seconds at most."""

log = logging.getLogger(__name__)


class ClusterScaler:
    """Decides about every pool until told to stop. Owned by one thread, but for `stop`.

    Replicas asked for count as held, whether or not their consumers have registered: a pod may wait minutes for its
    node. A scaler that comes to lead goes on from the decisions of the one before it, as far as they are fresh.
    """

    def __init__(self, settings: Settings, *, store: JobStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._pools = [pool.name for pool in settings.pools]
        self._sizer = Sizer(settings, store=store, clock=clock)
        self._asked: dict[str, int] | None = None
        """Pool → replicas of the last decision; None while another scaler leads."""
        self._stop = threading.Event()

    def stop(self) -> None:
        """Safe in a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Decide until told to stop. Consumers stay: without fresh decisions KEDA keeps what is there."""
        log_event(log, "deciding", pools=self._pools)
        look_until(self._stop, self.look, every_seconds=LOOK_SECONDS)
        self._sizer.resign()

    def look(self) -> None:
        """One round over all pools; Unavailable where the database is away."""
        made = self._sizer.round(self._held)
        self._asked = None if made is None else {decision.pool: decision.replicas for decision in made}

    def _held(self, pool: PoolSettings, live: Sequence[ConsumerInfo]) -> int:
        if self._asked is None:
            now_ms = self._store.now_ms()
            fresh = [made for made in self._store.decisions() if not made.is_stale(now_ms=now_ms)]
            self._asked = {made.pool: made.replicas for made in fresh}
        return self._asked.get(pool.name, len(live))
