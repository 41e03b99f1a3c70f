"""Local pools: consumers as child processes on this machine, as many as was decided."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path

from batchyard.devices import Devices, Place, devices_for
from batchyard.errors import BatchyardError, Unavailable
from batchyard.flight_recorder import flights_of, tell_of_deaths
from batchyard.processes import Child, end_all
from batchyard.settings import PoolSettings, Settings
from batchyard.store.base import ConsumerInfo, JobStore
from batchyard.telemetry import log_event
from batchyard_scaler.signals.replicas import holds_jobs
from batchyard_scaler.sizing import Sizer, look_until
from batchyard_scaler.spot_emulation import SpotEmulation

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
        self,
        settings: PoolSettings,
        *,
        command: Sequence[str],
        logs: Path,
        on_death: Callable[[Child], None],
        devices: Devices,
        environment: Mapping[str, str] = SHARED_MACHINE,
    ) -> None:
        self.settings = settings
        self._devices = devices
        self._places: dict[Child, Place] = {}
        self._command = command
        self._logs = logs
        self._on_death = on_death
        self._environment = environment
        self.staying: list[Child] = []
        """Not asked to end, the newest last; those that died wait for their back-off."""
        self._leaving: dict[Child, float] = {}
        """Asked to end → when it is killed."""

    def children(self) -> list[Child]:
        """Every process that is still there, draining or not."""
        return [*self.staying, *self._leaving]

    def most(self) -> int | None:
        """How many may stay, as far as this machine's devices go; None: any number."""
        free = self._devices.free(self.settings)
        return None if free is None else len(self.staying) + free

    def tend(self) -> None:
        """Look after those that died, forget those that have drained, end those that do not."""
        for child, deadline in list(self._leaving.items()):
            if not child.is_running:
                del self._leaving[child]
                self._devices.give_back(self._places.pop(child))
                self._on_death(child)
            elif time.monotonic() > deadline:
                log_event(log, "consumer_killed", level=logging.WARNING, pool=self.settings.name, pid=child.pid)
                child.kill()
        for child in self.staying:
            if (news := child.look_after()) is not None:
                log_event(
                    log, "consumer_died", level=logging.WARNING, pool=self.settings.name, news=news, tail=child.tail(5)
                )
                self._on_death(child)

    def resize(self, replicas: int, *, busy_pids: AbstractSet[int] = frozenset()) -> None:
        """Start or drain consumers, until so many stay; those that hold no jobs leave first, the newest of them. One
        without a place on a device waits until another has left."""
        while len(self.staying) < replicas and (place := self._devices.take(self.settings)) is not None:
            self._start(place)
        newest_first = self.staying[::-1]
        idle_first = sorted(newest_first, key=lambda child: child.pid in busy_pids)
        for child in idle_first[: max(0, len(self.staying) - replicas)]:
            self.end(child, grace_seconds=self.settings.drain_seconds + DRAIN_MARGIN_SECONDS)

    def end(self, child: Child, *, grace_seconds: float) -> None:
        """Ask one to drain, and kill it when the grace is over."""
        self.staying.remove(child)
        child.ask_to_end()
        self._leaving[child] = time.monotonic() + grace_seconds

    def _start(self, place: Place) -> None:
        number = self._free_number()
        child = Child(
            f"consumer {number} of {self.settings.name}",
            [*self._command, *place.arguments],
            log=self._logs / f"worker-{self.settings.name}-{number}.log",
            defaults=self._environment,
            variables=place.variables,
        )
        child.start()
        self._places[child] = place
        self.staying.append(child)

    def _free_number(self) -> int:
        taken = {child.name for child in self.children()}
        number = 1
        while f"consumer {number} of {self.settings.name}" in taken:
            number += 1
        return number


class LocalScaler:
    """Decides about all pools while it leads, and keeps its consumers at that until told to stop; then drains them.

    Where other machines have consumers of a pool, these count, and the rest is started here.
    """

    def __init__(
        self, settings: Settings, *, store: JobStore, command: Command, spot: SpotEmulation | None = None
    ) -> None:
        logs = settings.state_dir / "logs"
        self._store = store
        self._flights = flights_of(settings)
        self._spot = spot
        devices = devices_for(settings.pools)
        self._pools = {
            pool.name: LocalPool(
                pool,
                command=command(pool.name),
                logs=logs,
                on_death=self._tell,
                devices=devices,
                environment=SHARED_MACHINE
                if spot is None or pool.capacity != "spot"
                else {**SHARED_MACHINE, "NODE_ZONE": spot.zone},
            )
            for pool in settings.pools
        }
        self._sizer = Sizer(settings, store=store)
        self._elsewhere: dict[str, int] = {}
        """Pool → its consumers on other machines, or of another scaler on this one."""
        self._owners: dict[int, int] = {}
        """Process → consumer, of those seen last."""
        self._busy_pids: set[int] = set()
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
        with suppress(BatchyardError):
            self._sizer.resign()
        log_event(log, "drained", killed=killed)

    def children(self) -> list[Child]:
        """Every consumer's process that is still there, draining or not."""
        return [child for pool in self._pools.values() for child in pool.children()]

    def look(self) -> None:
        """One round over all pools. Unavailable where the database is away: then they hold what they have, and those
        that die are started again."""
        for pool in self._pools.values():
            pool.tend()
        self._preempt()
        if any(self._elsewhere.values()):
            # Of a scaler before this one, whose end was theirs too.
            tell_of_deaths(self._flights, self._store)
        self._busy_pids.clear()
        for decision in self._sizer.round(self._held, self._most) or ():
            pool = self._pools[decision.pool]
            wanted = max(0, decision.replicas - self._elsewhere[decision.pool])
            if self._spot is not None and pool.settings.capacity == "spot":
                wanted = min(wanted, len(pool.staying) + max(0, self._spot.available() - self._spot_replicas()))
            pool.resize(wanted, busy_pids=self._busy_pids)

    def _held(self, pool: PoolSettings, live: Sequence[ConsumerInfo]) -> int:
        here, pids = os.uname().nodename, {child.pid for child in self._pools[pool.name].children()}
        own = [info for info in live if info.host == here and info.pid in pids]
        self._owners |= {info.pid: info.id for info in own}
        self._busy_pids |= {info.pid for info in own if holds_jobs(info)}
        self._elsewhere[pool.name] = len(live) - len(own)
        return self._elsewhere[pool.name] + len(self._pools[pool.name].staying)

    def _most(self, pool: PoolSettings) -> int | None:
        here = self._pools[pool.name].most()
        return None if here is None else self._elsewhere[pool.name] + here

    # --- the emulation of spot ---

    def _spot_replicas(self) -> int:
        return sum(len(pool.staying) for pool in self._pools.values() if pool.settings.capacity == "spot")

    def _preempt(self) -> None:
        """Give notice to as many spot consumers, the oldest first, as there is no room for any more."""
        if self._spot is None:
            return
        spot = [pool for pool in self._pools.values() if pool.settings.capacity == "spot"]
        excess = max(0, self._spot_replicas() - self._spot.available())
        staying = [(pool, child) for pool in spot for child in pool.staying]
        for pool, child in staying[:excess]:
            notice = self._spot.notice_seconds
            log_event(log, "consumer_preempted", pool=pool.settings.name, pid=child.pid, notice_seconds=notice)
            if child.pid in self._owners:
                with suppress(Unavailable):
                    self._store.note_preempted(self._owners[child.pid])
            pool.end(child, grace_seconds=notice)

    def _tell(self, child: Child) -> None:
        """Tell of a consumer's end, so that what it held need not wait for its lease and what it died of is known; the
        next consumer to start tells what cannot be told now. One that left in order has left nothing to tell."""
        cause = None if child.ending else child.how_it_ended()
        with suppress(Unavailable):
            tell_of_deaths(self._flights, self._store, pid=child.pid, cause=cause, blames=not child.ending)
