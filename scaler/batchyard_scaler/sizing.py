"""The size of one pool, round by round: what the store tells, given to the policy; and decisions written down."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from batchyard.errors import BatchyardError
from batchyard.jobs import Lane, State
from batchyard.settings import PoolSettings
from batchyard.store.base import BacklogRow, JobStore, ModelVersion, PoolDecision
from batchyard.telemetry import log_event
from batchyard_scaler.policy.simple import PoolState, QueueBacklog, decide, needed_now

REPORT_MS = 5_000
"""How often a decision is written down while it asks for the same number."""
WORK = {State.QUEUED, State.RUNNING}
"""A job that waits for its next try is no work until it is due."""

log = logging.getLogger(__name__)


class PoolSizer:
    """Decides about one pool and remembers what the policy needs to know of the past. Owned by one thread."""

    def __init__(self, settings: PoolSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._last_needed_at = clock()
        self._last_replicas: int | None = None
        self._loaded: set[str] = set()
        """Versions that a consumer of this pool has loaded, or tried to."""

    def decide(
        self,
        versions: Sequence[ModelVersion],
        backlog: Sequence[BacklogRow],
        *,
        held: int,
        live: int,
        has_ready: bool,
        now_ms: int,
    ) -> PoolDecision:
        """One round. `held` replicas are there or asked for, `live` of them starting or ready; `has_ready`: any ready.
        `now_ms` is the store's clock."""
        served = [version for version in versions if serves(self._settings, version)]
        queues = backlogs(served, backlog, capacity=self._settings.capacity)
        now = self._clock()
        state = PoolState(
            minimum=self._settings.min,
            maximum=self._settings.max,
            idle_seconds=self._settings.idle_seconds,
            live=held,
            idle_for_seconds=now - self._last_needed_at,
            never_loaded=self._never_loaded(served, has_ready=has_ready),
        )
        if needed_now(state, queues) >= held:
            self._last_needed_at = now
        decision = decide(state, queues)
        self._log_change(decision.replicas, decision.reason)
        busy = [queue for queue in queues if queue.jobs]
        return PoolDecision(
            pool=self._settings.name,
            replicas=decision.replicas,
            live=live,
            reason=decision.reason,
            backlog_jobs=sum(queue.jobs for queue in busy),
            backlog_seconds=total_seconds(busy),
            decided_at_ms=now_ms,
        )

    def _never_loaded(self, served: Sequence[ModelVersion], *, has_ready: bool) -> list[str]:
        """Versions whose schema nobody knows. Where loading failed, each scaler has it tried once more."""
        if has_ready:
            self._loaded |= {version.name for version in served}
        return [version.name for version in served if version.digest is None and version.name not in self._loaded]

    def _log_change(self, replicas: int, reason: str) -> None:
        if replicas != self._last_replicas:
            before = self._last_replicas or 0
            log_event(log, "pool_scaled", pool=self._settings.name, before=before, replicas=replicas, reason=reason)
            self._last_replicas = replicas


class Reports:
    """Writes decisions down where they are another number, or the last one written has aged."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._written: dict[str, PoolDecision] = {}

    def report(self, made: PoolDecision) -> None:
        last = self._written.get(made.pool)
        if last is None or made.replicas != last.replicas or abs(made.decided_at_ms - last.decided_at_ms) >= REPORT_MS:
            self._store.report_decision(made)
            self._written[made.pool] = made


def look_until(stop: threading.Event, look: Callable[[], None], *, every_seconds: float) -> None:
    """Look again and again; while the database is away, everything stays as it is."""
    is_away = False
    while not stop.wait(every_seconds):
        try:
            look()
            is_away = False
        except BatchyardError as error:
            if not is_away:
                log_event(log, "database_away", level=logging.WARNING, problem=error.message)
            is_away = True


def serves(pool: PoolSettings, version: ModelVersion) -> bool:
    return version.active and not {version.name, version.model}.isdisjoint(pool.models)


def total_seconds(queues: Sequence[QueueBacklog]) -> float | None:
    """Of one consumer's time; None where a speed is unknown."""
    known = [queue.seconds for queue in queues if queue.seconds is not None]
    return sum(known) if len(known) == len(queues) else None


def backlogs(versions: Sequence[ModelVersion], rows: Sequence[BacklogRow], *, capacity: str) -> list[QueueBacklog]:
    """The unfinished work of the queues that such a pool serves. A negative priority marks held jobs."""
    lanes = (Lane.TOLERANT,) if capacity == "spot" else (Lane.FIRM, Lane.TOLERANT)
    found = []
    for version in versions:
        for lane in lanes:
            paused = lane in version.paused
            mine = [
                row
                for row in rows
                if row.queue_id == version.queue_ids[lane]
                and row.state in WORK
                and (row.state == State.RUNNING or (row.priority >= 0 and not paused))
            ]
            speed = version.seconds_per_unit
            found.append(
                QueueBacklog(
                    name=f"{version.name} {lane.word}",
                    jobs=sum(row.jobs for row in mine),
                    seconds=None if speed is None else sum(row.cost for row in mine) * speed,
                )
            )
    return found
