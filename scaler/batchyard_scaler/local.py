"""Local pools: consumers as child processes on this machine, as many as their policy asks for."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from batchyard.errors import BatchyardError
from batchyard.jobs import Lane, State
from batchyard.processes import Child, end_all
from batchyard.settings import PoolSettings, Settings
from batchyard.store.base import BacklogRow, ConsumerInfo, JobStore, ModelVersion, PoolDecision
from batchyard.telemetry import log_event
from batchyard_scaler.local_policy import PoolState, QueueBacklog, decide, needed_now

LOOK_SECONDS = 0.5
REPORT_MS = 5_000
"""How often a decision is written down while it asks for the same number."""
DRAIN_MARGIN_SECONDS = 5.0
"""Beyond the pool's own grace, before a consumer that does not end is killed."""
END_MARGIN_SECONDS = 1.5
"""The same when everything ends, where somebody waits: a consumer that is killed loses nothing but its lease."""
WORK = {State.QUEUED, State.RUNNING}
"""A job that waits for its next try is no work until it is due."""

SHARED_MACHINE = {"OMP_WAIT_POLICY": "PASSIVE"}
"""A consumer here shares its cores with the API and its like. Threads of a forward pass that spin at every barrier
while one of them waits for a core halve the rate (on two busy cores: 49 texts/s spinning, 88 sleeping)."""

log = logging.getLogger(__name__)

Command = Callable[[str], Sequence[str]]
"""From a pool's name to the command that starts one of its consumers."""


class LocalPool:
    """The consumers of one pool on this machine. Owned by one thread."""

    def __init__(self, settings: PoolSettings, *, command: Sequence[str], logs: Path) -> None:
        self.settings = settings
        self._command = command
        self._logs = logs
        self._children: list[Child] = []
        self._leaving: dict[Child, float] = {}
        """Asked to drain → when it is killed."""
        self._last_needed_at = time.monotonic()
        self._last_replicas: int | None = None
        self._loaded: set[str] = set()
        """Versions that a consumer of ours has loaded, or tried to."""

    def look(
        self,
        versions: Sequence[ModelVersion],
        backlog: Sequence[BacklogRow],
        consumers: Sequence[ConsumerInfo],
        *,
        now_ms: int,
    ) -> PoolDecision:
        """One round: count, decide, start or drain, and look after those that died. `now_ms` is the store's clock."""
        self._bury()
        served = [version for version in versions if serves(self.settings, version)]
        queues = backlogs(served, backlog, capacity=self.settings.capacity)
        now = time.monotonic()
        state = PoolState(
            minimum=self.settings.min,
            maximum=self.settings.max,
            idle_seconds=self.settings.idle_seconds,
            live=len(self._children),
            idle_for_seconds=now - self._last_needed_at,
            never_loaded=self._never_loaded(served, consumers),
        )
        if needed_now(state, queues) >= state.live:
            self._last_needed_at = now
        decision = decide(state, queues)
        if decision.replicas != self._last_replicas:
            log_event(
                log,
                "pool_scaled",
                pool=self.settings.name,
                before=self._last_replicas or 0,
                replicas=decision.replicas,
                reason=decision.reason,
            )
            self._last_replicas = decision.replicas
        self._resize(decision.replicas)
        busy = [queue for queue in queues if queue.jobs]
        return PoolDecision(
            pool=self.settings.name,
            replicas=decision.replicas,
            live=state.live,
            reason=decision.reason,
            backlog_jobs=sum(queue.jobs for queue in busy),
            backlog_seconds=total_seconds(busy),
            decided_at_ms=now_ms,
        )

    def children(self) -> list[Child]:
        """Every process that is still there, draining or not."""
        return [*self._children, *self._leaving]

    def _never_loaded(self, served: Sequence[ModelVersion], consumers: Sequence[ConsumerInfo]) -> list[str]:
        """Versions whose schema nobody knows. Where loading failed, each scaler has it tried once more."""
        ready = {info.pid for info in consumers if info.state == "ready"}
        if any(child.pid in ready for child in self._children):
            self._loaded |= {version.name for version in served}
        return [version.name for version in served if version.digest is None and version.name not in self._loaded]

    def _resize(self, replicas: int) -> None:
        while len(self._children) < replicas:
            child = Child(
                f"consumer {self._free_number()} of {self.settings.name}",
                self._command,
                log=self._logs / f"worker-{self.settings.name}-{self._free_number()}.log",
                defaults=SHARED_MACHINE,
            )
            child.start()
            self._children.append(child)
        while len(self._children) > replicas:
            child = self._children.pop()
            child.ask_to_end()
            self._leaving[child] = time.monotonic() + self.settings.drain_seconds + DRAIN_MARGIN_SECONDS
        for child in self._children:
            if (news := child.look_after()) is not None:
                log_event(
                    log, "consumer_died", level=logging.WARNING, pool=self.settings.name, news=news, tail=child.tail(5)
                )

    def _free_number(self) -> int:
        taken = {child.name for child in self.children()}
        number = 1
        while f"consumer {number} of {self.settings.name}" in taken:
            number += 1
        return number

    def _bury(self) -> None:
        """Forget those that have drained; end those that do not."""
        for child, deadline in list(self._leaving.items()):
            if not child.is_running:
                del self._leaving[child]
            elif time.monotonic() > deadline:
                log_event(log, "consumer_killed", level=logging.WARNING, pool=self.settings.name, pid=child.pid)
                child.kill()


class LocalScaler:
    """Keeps every local pool at its size until told to stop; then drains them all."""

    def __init__(self, settings: Settings, *, store: JobStore, command: Command) -> None:
        logs = settings.state_dir / "logs"
        self._store = store
        self._pools = [LocalPool(pool, command=command(pool.name), logs=logs) for pool in settings.pools]
        self._reported: dict[str, PoolDecision] = {}
        self._grace = max((pool.drain_seconds for pool in settings.pools), default=0.0) + END_MARGIN_SECONDS
        self._stop = threading.Event()
        self._hurry = threading.Event()

    def stop(self) -> None:
        """Drain; asked again: at once. Safe in a signal handler."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def run(self) -> None:
        """Look again and again; while the database is away, everything stays as it is."""
        is_away = False
        while not self._stop.wait(LOOK_SECONDS):
            try:
                self.look()
                is_away = False
            except BatchyardError as error:
                if not is_away:
                    log_event(log, "database_away", level=logging.WARNING, problem=error.message)
                is_away = True
        children = self.children()
        log_event(log, "draining", consumers=len(children))
        killed = end_all(children, grace_seconds=self._grace, hurry=self._hurry)
        log_event(log, "drained", killed=killed)

    def children(self) -> list[Child]:
        """Every consumer's process that is still there, draining or not."""
        return [child for pool in self._pools for child in pool.children()]

    def look(self) -> None:
        """One round over all pools; Unavailable where the database is away."""
        versions, backlog = self._store.models(), self._store.backlog()
        here = os.uname().nodename
        consumers = [info for info in self._store.consumers() if info.host == here]
        for pool in self._pools:
            self._report(pool.look(versions, backlog, consumers, now_ms=self._store.now_ms()))

    def _report(self, made: PoolDecision) -> None:
        """Write a decision down where it is another number, or the last one written has aged."""
        last = self._reported.get(made.pool)
        if last is None or made.replicas != last.replicas or abs(made.decided_at_ms - last.decided_at_ms) >= REPORT_MS:
            self._store.report_decision(made)
            self._reported[made.pool] = made


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
