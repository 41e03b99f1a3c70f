"""Keeps in memory the models that have work: all of them where they fit, else by `residency.py`."""

from __future__ import annotations

import gc
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from batchyard.errors import Unavailable
from batchyard.jobs import State
from batchyard.model import Model
from batchyard.settings import PoolSettings
from batchyard.store.base import JobStore
from batchyard.telemetry import log_event
from batchyard_consumers.footprint import in_use, most_used
from batchyard_consumers.host_copies import GIB, host_size_of, to_host
from batchyard_consumers.loading import Loader
from batchyard_consumers.residency import Copy, Standing, dropped_copies, next_move, preloaded
from batchyard_consumers.served import Served

LOOK_SECONDS = 1.0
"""Between two looks at the backlog, while not everything is in memory."""
LEAVE_SECONDS = 0.02
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 300.0
GPU_SHARE = 0.9
"""Of a GPU's memory for models; the rest is its context and what lies between."""

log = logging.getLogger(__name__)


class Holder(Protocol):
    """What has the jobs: `Pipeline`."""

    def leave_out(self, served: Served) -> None: ...
    def is_free_of(self, served: Served) -> bool: ...


@dataclass
class Record:
    """What is known of one version's stays. Owned by the thread of `Residents`."""

    served: Served
    size: int
    loaded_at: float = -math.inf
    worked_at: float = -math.inf
    """When it last had work."""
    wanted_since: float | None = None
    """Since when it has had work and not been resident."""
    pause: float = FIRST_PAUSE_SECONDS
    """Before the next attempt, once one has failed."""
    not_before: float = field(default=-math.inf)
    copy: Model | None = None
    """With its weights in the machine's memory, while it is evicted."""
    copy_size: int = 0


class Residents:
    """`run` is the body of the thread that loads and evicts."""

    def __init__(
        self,
        versions: Sequence[Served],
        *,
        loader: Loader,
        holder: Holder,
        store: JobStore,
        room: float,
        stopping: threading.Event,
        device: str = "cpu",
        host_room: Callable[[float], float] = lambda held: 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`room`: bytes that models may take together on the device; `host_room`: from the bytes of the copies of
        evicted ones in the machine's memory to those that these may take."""
        self._records = {served.name: Record(served=served, size=declared_size(served)) for served in versions}
        self._loader = loader
        self._holder = holder
        self._store = store
        self._room = room
        self._stopping = stopping
        self._device = device
        self._host_room = host_room
        self._used_before = in_use(device)
        self._clock = clock

    def run(self) -> None:
        """Load what is to be there; then look after the rest until all is there or the consumer ends."""
        self.preload()
        while not self._is_complete() and not self._stopping.wait(LOOK_SECONDS):
            self.look()

    def preload(self) -> None:
        """Load what is to be there before any work is known."""
        for one in self._records.values():
            if one.size > self._room:
                takes = f"takes {one.size / GIB:.2g} GiB, and all models here may take {self._room / GIB:.2g} together"
                self._loader.refuse(one.served, reason=takes)
            elif rest := self._loader.rest(one.served):
                one.not_before = self._clock() + rest
        wanted = [
            one
            for one in self._records.values()
            if one.not_before == -math.inf and (one.served.settings.preload or one.served.settings.pinned)
        ]
        for name in preloaded([self._standing(one) for one in wanted], room=self._room):
            one = self._records[name]
            if one.size <= self._free():
                self._load(one)
            # A size that nobody declared is known once it is loaded.
            if self._free() < 0 and self._standing(one).is_resident and not self._standing(one).is_pinned:
                self._evict(one, for_=one)

    def look(self) -> None:
        """One round: at the backlog, and at most one model in."""
        try:
            self._note_work()
        except Unavailable:
            return
        standings = [self._standing(one) for one in self._records.values()]
        move = next_move(standings, room=self._room)
        if move is None:
            self._retry()
        else:
            coming = self._records[move.load]
            if all(self._evict(self._records[name], for_=coming) for name in move.evict):
                self._load(coming)

    def memory(self) -> dict[str, int]:
        """Bytes that the ledger reckons with for the models that are there, and by how much the memory in use has grown
        at most; of a CPU's, the whole process's. From any thread."""
        there = [one.size for one in self._records.values() if one.served.model is not None]
        return {"predicted": sum(there), "measured": max(0, most_used(self._device) - self._used_before)}

    def _free(self) -> float:
        return self._room - sum(one.size for one in self._records.values() if one.served.model is not None)

    def _is_complete(self) -> bool:
        """Nothing is left to load, so nothing will have to leave."""
        return all(one.served.model is not None for one in self._records.values())

    def _load(self, one: Record) -> None:
        if self._stopping.is_set():
            return
        copy, one.copy = one.copy, None
        is_back = copy is not None and self._loader.bring_back(one.served, copy)
        del copy
        if is_back or self._loader.attempt(one.served):
            one.size = max(one.served.footprint.at(one.served.speed.budget), 1)
            one.loaded_at = one.worked_at = self._clock()
            one.wanted_since, one.pause = None, FIRST_PAUSE_SECONDS
        else:
            one.not_before = self._clock() + one.pause
            one.pause = min(2 * one.pause, LONGEST_PAUSE_SECONDS)

    def _retry(self) -> None:
        """Try what failed to load at the start, and is due, once more where it fits."""
        for one in self._records.values():
            failed = one.served.model is None and one.not_before > -math.inf
            if failed and self._clock() >= one.not_before and one.size <= self._free():
                self._load(one)
                return

    def _evict(self, one: Record, *, for_: Record) -> bool:
        """Let a model finish what it holds and go; whether it went."""
        self._holder.leave_out(one.served)
        while not self._holder.is_free_of(one.served):
            if self._stopping.wait(LEAVE_SECONDS):
                return False
        model = one.served.model
        one.served.evict()
        self._keep(one, model, coming=for_)
        del model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._loader.evicted(one.served)
        stayed = self._clock() - one.loaded_at
        kept = one.copy is not None
        log_event(log, "model_evicted", model=one.served.name, stayed_seconds=round(stayed, 1), kept_on_host=kept)
        return True

    def _keep(self, one: Record, model: Model | None, *, coming: Record) -> None:
        """Keep a copy of what is evicted, where there is room for it beside that of the one to come, or in place of
        others."""
        held = [other for other in self._records.values() if other.copy is not None]
        room = self._host_room(sum(other.copy_size for other in held))
        if room <= 0:
            return
        copies = [
            Copy(name=other.served.name, size=other.copy_size, unused_seconds=self._clock() - other.worked_at)
            for other in held
            if other is not coming
        ]
        size, coming_size = host_size_of(model), coming.copy_size if coming.copy is not None else 0
        dropped = dropped_copies(copies, size=size, room=room - coming_size)
        if dropped is None:
            return
        for name in dropped:
            self._records[name].copy = None
        if to_host(model, device=self._device):
            one.copy, one.copy_size = model, size

    def _note_work(self) -> None:
        queues = {queue_id: one for one in self._records.values() for queue_id in one.served.queue_ids.values()}
        costs: dict[str, int] = {}
        for row in self._store.backlog(queue_ids=list(queues)):
            if row.jobs > 0 and (row.state is State.RUNNING or (row.state is State.QUEUED and row.priority >= 0)):
                name = queues[row.queue_id].served.name
                costs[name] = costs.get(name, 0) + max(row.cost, row.jobs)
        now = self._clock()
        for name, one in self._records.items():
            one.served.waiting_cost = costs.get(name, 0)
            if one.served.waiting_cost:
                one.worked_at = now
            if not one.served.waiting_cost or one.served.model is not None:
                one.wanted_since = None
            elif one.wanted_since is None:
                one.wanted_since = now

    def _standing(self, one: Record) -> Standing:
        served, now = one.served, self._clock()
        per_unit = served.speed.seconds_per_unit
        is_due = served.model is not None or now >= one.not_before
        work = served.waiting_cost * (math.inf if per_unit is None else per_unit) if served.waiting_cost else 0.0
        return Standing(
            name=served.name,
            size=one.size,
            is_resident=served.model is not None,
            # Its jobs are inside it, and may be for long.
            is_pinned=served.settings.pinned or served.is_continuous,
            resident_seconds=now - one.loaded_at,
            unused_seconds=now - one.worked_at,
            work_seconds=work if is_due else 0.0,
            waiting_seconds=0.0 if one.wanted_since is None else now - one.wanted_since,
            load_seconds=served.load_seconds if one.copy is None else served.return_seconds or served.load_seconds,
            stands_by=served.settings.preload and is_due,
        )


def room_on(device: str, pool: PoolSettings) -> float:
    """Bytes that the models of a consumer may take: as configured, else most of a GPU or of its share of one; a CPU's
    are not counted."""
    if pool.memory_gib is not None:
        return pool.memory_gib * GIB
    if device.startswith("cuda"):
        return GPU_SHARE * torch.cuda.get_device_properties(device).total_memory / pool.consumers_per_device
    return math.inf


def declared_size(served: Served) -> int:
    """Bytes that a model is said to take before anybody has loaded it; 0 where nothing is said."""
    settings = served.settings
    declared = settings.gpu_memory_gib if settings.gpu_memory_gib is not None else settings.memory_gib
    return int((declared or 0.0) * GIB)
