"""A pool's consumers as replicas, and the zones in which they were preempted or never came."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from batchyard.settings import PoolSettings
from batchyard.store.base import ConsumerInfo
from batchyard_scaler.policy.records import Replica, Zone
from batchyard_scaler.signals.starts import Starts, ready_in_seconds

LIVE = ("starting", "ready")
PRESENT = ("starting", "ready", "draining")


class Business:
    """Which consumers have work, from one look to the next. Owned by one thread."""

    def __init__(self) -> None:
        self._finished: dict[int, object] = {}
        self._idle_since: dict[str, float] = {}

    def of(self, consumers: Iterable[ConsumerInfo]) -> set[int]:
        """Those that hold jobs, or ended some since the last look."""
        busy, finished = set(), {}
        for info in consumers:
            finished[info.id] = told = info.stats.get("finished")
            if holds_jobs(info) or (info.id in self._finished and told != self._finished[info.id]):
                busy.add(info.id)
        self._finished = finished
        return busy

    def idle_for(self, pool: str, replicas: Iterable[Replica], *, now: float) -> float:
        """Seconds since which one of them at least has been idle without a pause; 0 where none is."""
        if not any(replica.state == "ready" and not replica.is_busy for replica in replicas):
            self._idle_since.pop(pool, None)
            return 0.0
        return now - self._idle_since.setdefault(pool, now)


def replicas_of(
    consumers: Iterable[ConsumerInfo],
    *,
    unregistered_since_ms: Sequence[int],
    starts: Starts,
    usual_seconds: float,
    busy: set[int],
    now_ms: int,
) -> list[Replica]:
    """The consumers of one pool, and those asked for that have not registered yet."""
    found = []
    for info in consumers:
        if info.state == "starting":
            left = ready_in_seconds(asked_at_ms=starts.asked_at_ms(info), now_ms=now_ms, usual_seconds=usual_seconds)
            found.append(Replica(state="starting", ready_in_seconds=left, zone=info.zone))
        elif info.state in PRESENT:
            is_ready = info.state == "ready"
            found.append(Replica(state="ready" if is_ready else "draining", zone=info.zone, is_busy=info.id in busy))
    found += [
        Replica(
            state="starting",
            ready_in_seconds=ready_in_seconds(asked_at_ms=asked_ms, now_ms=now_ms, usual_seconds=usual_seconds),
        )
        for asked_ms in unregistered_since_ms
    ]
    return found


class Zones:
    """Where spot replicas were asked for in vain. Owned by one thread."""

    def __init__(self) -> None:
        self._short_since: dict[tuple[str, str], float] = {}
        self._refused_at: dict[tuple[str, str], float] = {}

    def of(
        self,
        pool: PoolSettings,
        consumers: Sequence[ConsumerInfo],
        *,
        asked: Mapping[str, int],
        patience_seconds: float,
        now_ms: int,
    ) -> list[Zone]:
        """The pool's zones: as configured, and those that its consumers told. `asked`: replicas wanted in each."""
        told = (info.zone for info in consumers if info.zone)
        names = list(dict.fromkeys([*pool.zones, *told])) or [""]
        now = now_ms / 1000
        return [
            self._zone(pool.name, name, consumers, asked=asked.get(name, 0), patience=patience_seconds, now=now)
            for name in names
        ]

    def _zone(
        self, pool: str, name: str, consumers: Sequence[ConsumerInfo], *, asked: int, patience: float, now: float
    ) -> Zone:
        here = [info for info in consumers if info.zone == name]
        key = (pool, name)
        if sum(info.state in LIVE for info in here) >= asked:
            self._short_since.pop(key, None)
        elif now - self._short_since.setdefault(key, now) > patience:
            self._refused_at[key] = now
        lost = [info.preempted_at_ms / 1000 for info in here if info.preempted_at_ms is not None]
        recent = [at for at in lost if now - at <= 3600]
        return Zone(
            name=name,
            preempted_ago_seconds=max(0.0, now - max(lost)) if lost else math.inf,
            preemptions=len(recent),
            refused_ago_seconds=now - self._refused_at[key] if key in self._refused_at else math.inf,
        )


def holds_jobs(info: ConsumerInfo) -> bool:
    """As its last heartbeat told."""
    held = info.stats.get("held")
    return isinstance(held, dict) and any(held.values())
