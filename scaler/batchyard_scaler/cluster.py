"""Pools in a cluster: decisions written down for KEDA to fetch; it starts and ends the consumers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from batchyard.settings import PoolSettings, Settings
from batchyard.store.base import JobStore
from batchyard.telemetry import log_event
from batchyard_scaler.sizing import PoolSizer, Reports, look_until

LOOK_SECONDS = 1.0
"""KEDA asks every five seconds at most."""
LIVE = {"starting", "ready"}

log = logging.getLogger(__name__)


class ClusterScaler:
    """Decides about every pool until told to stop. Owned by one thread, but for `stop`.

    Replicas asked for count as held, whether or not their consumers have registered: a pod may wait minutes for its
    node. A scaler that starts goes on from the decision of the one before it, as far as that is fresh.
    """

    def __init__(self, settings: Settings, *, store: JobStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._pools = [(pool, PoolSizer(pool, clock=clock)) for pool in settings.pools]
        self._reports = Reports(store)
        self._asked: dict[str, int] = {}
        """Pool → replicas of the last decision."""
        self._stop = threading.Event()

    def stop(self) -> None:
        """Safe in a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Decide until told to stop. Consumers stay: without fresh decisions KEDA keeps what is there."""
        log_event(log, "deciding", pools=[pool.name for pool, _ in self._pools])
        look_until(self._stop, self.look, every_seconds=LOOK_SECONDS)

    def look(self) -> None:
        """One round over all pools; Unavailable where the database is away."""
        versions, backlog = self._store.models(), self._store.backlog()
        consumers = [info for info in self._store.consumers() if info.state in LIVE]
        now_ms = self._store.now_ms()
        for pool, sizer in self._pools:
            states = [info.state for info in consumers if info.pool == pool.name]
            made = sizer.decide(
                versions,
                backlog,
                held=self._held(pool, live=len(states), now_ms=now_ms),
                live=len(states),
                has_ready="ready" in states,
                now_ms=now_ms,
            )
            self._reports.report(made)
            self._asked[pool.name] = made.replicas

    def _held(self, pool: PoolSettings, *, live: int, now_ms: int) -> int:
        if pool.name not in self._asked:
            fresh = [made for made in self._store.decisions() if not made.is_stale(now_ms=now_ms)]
            self._asked[pool.name] = next((made.replicas for made in fresh if made.pool == pool.name), live)
        return min(pool.max, self._asked[pool.name])
