"""Local pools: consumers as child processes on this machine, as many as their policy asks for."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from batchyard.errors import Unavailable
from batchyard.flight_recorder import flights_of, tell_of_deaths
from batchyard.processes import Child, end_all
from batchyard.settings import PoolSettings, Settings
from batchyard.store.base import BacklogRow, ConsumerInfo, JobStore, ModelVersion, PoolDecision
from batchyard.telemetry import log_event
from batchyard_scaler.sizing import PoolSizer, Reports, look_until

LOOK_SECONDS = 0.5
DRAIN_MARGIN_SECONDS = 5.0
"""Beyond the pool's own grace, before a consumer that does not end is killed."""
END_MARGIN_SECONDS = 1.5
"""The same when everything ends, where somebody waits: a consumer that is killed loses nothing but its lease."""

SHARED_MACHINE = {"OMP_WAIT_POLICY": "PASSIVE"}
"""A consumer here shares its cores with the API and its like. Threads of a forward pass that spin at every barrier
while one of them waits for a core halve the rate (on two busy cores: 49 texts/s spinning, 88 sleeping)."""

log = logging.getLogger(__name__)

Command = Callable[[str], Sequence[str]]
"""From a pool's name to the command that starts one of its consumers."""


class LocalPool:
    """The consumers of one pool on this machine. Owned by one thread."""

    def __init__(
        self, settings: PoolSettings, *, command: Sequence[str], logs: Path, on_death: Callable[[Child], None]
    ) -> None:
        self.settings = settings
        self._command = command
        self._logs = logs
        self._on_death = on_death
        self._children: list[Child] = []
        self._leaving: dict[Child, float] = {}
        """Asked to drain → when it is killed."""
        self._sizer = PoolSizer(settings)

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
        ready = {info.pid for info in consumers if info.state == "ready"}
        live = len(self._children)
        has_ready = any(child.pid in ready for child in self._children)
        made = self._sizer.decide(versions, backlog, held=live, live=live, has_ready=has_ready, now_ms=now_ms)
        self._resize(made.replicas)
        return made

    def children(self) -> list[Child]:
        """Every process that is still there, draining or not."""
        return [*self._children, *self._leaving]

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
                self._on_death(child)

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
                self._on_death(child)
            elif time.monotonic() > deadline:
                log_event(log, "consumer_killed", level=logging.WARNING, pool=self.settings.name, pid=child.pid)
                child.kill()


class LocalScaler:
    """Keeps every local pool at its size until told to stop; then drains them all."""

    def __init__(self, settings: Settings, *, store: JobStore, command: Command) -> None:
        logs = settings.state_dir / "logs"
        self._store = store
        self._flights = flights_of(settings)
        self._pools = [
            LocalPool(pool, command=command(pool.name), logs=logs, on_death=self._tell) for pool in settings.pools
        ]
        self._reports = Reports(store)
        self._grace = max((pool.drain_seconds for pool in settings.pools), default=0.0) + END_MARGIN_SECONDS
        self._stop = threading.Event()
        self._hurry = threading.Event()

    def stop(self) -> None:
        """Drain; asked again: at once. Safe in a signal handler."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def run(self) -> None:
        """Keep the pools at their size until told to stop, then drain them."""
        look_until(self._stop, self.look, every_seconds=LOOK_SECONDS)
        children = self.children()
        log_event(log, "draining", consumers=len(children))
        killed = end_all(children, grace_seconds=self._grace, hurry=self._hurry)
        for child in children:
            self._tell(child)
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
            self._reports.report(pool.look(versions, backlog, consumers, now_ms=self._store.now_ms()))

    def _tell(self, child: Child) -> None:
        """Tell of a consumer's end, so that what it held need not wait for its lease and what it died of is known; the
        next consumer to start tells what cannot be told now. One that left in order has left nothing to tell."""
        cause = None if child.ending else child.how_it_ended()
        with suppress(Unavailable):
            tell_of_deaths(self._flights, self._store, pid=child.pid, cause=cause, blames=not child.ending)
