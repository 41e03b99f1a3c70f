"""The replicas of one pool in a replay, and what their time went into."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from batchyard_scaler.policy.records import Pool, Replica, Zone
from batchyard_scaler.simulator.queues import SimulatedQueue

HOUR = 3600.0


@dataclass(slots=True, eq=False)
class SimulatedReplica:
    """One consumer, from the decision to start it until its node is free again."""

    pool: SimulatedPool
    zone: str
    asked_at: float
    ready_at: float
    state: Literal["starting", "ready", "draining", "gone"] = "starting"
    model: int | None = None
    """The model in memory."""
    job: int | None = None
    swap_until: float = 0.0
    """When the present job's model was in memory."""
    since: float = 0.0
    """When the present job was taken, or idleness began."""


@dataclass(slots=True)
class Spent:
    """Seconds of replicas' time, and how often things happened."""

    replica_seconds: float = 0.0
    busy_seconds: float = 0.0
    """On jobs that were finished."""
    cold_seconds: float = 0.0
    idle_seconds: float = 0.0
    swap_seconds: float = 0.0
    lost_seconds: float = 0.0
    """On jobs that a preemption cut off."""
    starts: int = 0
    preemptions: int = 0
    """Replicas whose node was taken away."""
    requeued: int = 0
    """Jobs that a preemption cut off."""


@dataclass(slots=True, eq=False)
class SimulatedZone:
    """What one zone has, uses and has refused."""

    name: str
    nodes: int = 0
    """There are; used or free."""
    used: int = 0
    preempted_at: list[float] = field(default_factory=list)
    """Within the last hour."""
    last_preempted_at: float = -math.inf
    asked_since: float | None = None
    """Since when a replica is wanted that has no node."""

    def told(self, now: float, *, patience: float) -> Zone:
        """As the policy sees it; a refusal is one that outlasts `patience`, a cold start."""
        self.preempted_at = [at for at in self.preempted_at if at > now - HOUR]
        refused_at = math.inf if self.asked_since is None else self.asked_since + patience
        return Zone(
            name=self.name,
            preempted_ago_seconds=now - self.last_preempted_at,
            preemptions=len(self.preempted_at),
            refused_ago_seconds=0.0 if refused_at <= now else math.inf,
        )

    def note_preemption(self, now: float) -> None:
        self.preempted_at.append(now)
        self.last_preempted_at = now


class SimulatedPool:
    """Owned by the replay."""

    def __init__(self, settings: Pool, *, lanes: list[list[SimulatedQueue]], zones: list[SimulatedZone]) -> None:
        self.settings = settings
        self.lanes = lanes
        """The queues that it serves, the lane first that goes first."""
        self.zones = zones
        """Empty: capacity without limit."""
        self.live: list[SimulatedReplica] = []
        """Starting and ready, in the order of their starts."""
        self.draining: list[SimulatedReplica] = []
        self.idle: dict[SimulatedReplica, None] = {}
        """In the order in which they became idle."""
        self.wanted = 0
        self.surplus_since: float | None = None
        """Since when one replica or more has been idle all the time."""
        self.spent = Spent()

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def replicas(self) -> int:
        return len(self.live) + len(self.draining)

    def told(self, now: float) -> Pool:
        """As the policy sees it."""
        replicas = [
            Replica(
                state="ready" if replica.state == "ready" else "starting",
                ready_in_seconds=0.0 if replica.state == "ready" else self._remaining(replica, now),
                zone=replica.zone,
                is_busy=replica.job is not None,
            )
            for replica in self.live
        ]
        replicas += [Replica(state="draining", zone=replica.zone, is_busy=True) for replica in self.draining]
        patience = self.settings.cold_start_seconds
        return msgspec.structs.replace(
            self.settings,
            replicas=replicas,
            idle_for_seconds=0.0 if self.surplus_since is None else now - self.surplus_since,
            zones=[zone.told(now, patience=patience) for zone in self.zones],
        )

    def note_idle(self, replica: SimulatedReplica, now: float) -> None:
        replica.since = now
        if not self.idle:
            self.surplus_since = now
        self.idle[replica] = None

    def note_busy(self, replica: SimulatedReplica, now: float) -> None:
        self.spent.idle_seconds += now - replica.since
        del self.idle[replica]
        if not self.idle:
            self.surplus_since = None

    def idle_replica(self, model: int) -> SimulatedReplica:
        """The one to take a job: with its model in memory, else the one that became idle last."""
        if len(self.lanes[-1]) > 1:
            for replica in self.idle:
                if replica.model == model:
                    return replica
        return next(reversed(self.idle))

    def victims(self, count: int) -> list[SimulatedReplica]:
        """Who leaves first: those not ready yet, the youngest first; then the idle; then the busy."""
        order = {"starting": 0, "ready": 1}
        ranked = sorted(
            self.live, key=lambda replica: (order[replica.state], replica.job is not None, -replica.asked_at)
        )
        return ranked[:count]

    def zone_with_room(self, preferred: dict[str, int]) -> SimulatedZone | None:
        """Where the next replica goes: the zone furthest below its wanted number, else the one that has fewest."""
        room = [zone for zone in self.zones if zone.used < zone.nodes]
        if not room:
            return None
        here = {zone.name: sum(replica.zone == zone.name for replica in self.live) for zone in room}
        return min(room, key=lambda zone: (here[zone.name] - preferred.get(zone.name, 0), here[zone.name]))

    def _remaining(self, replica: SimulatedReplica, now: float) -> float:
        """By the p90 that the policy is told, for nobody knows how long this very start will take."""
        return max(0.0, replica.asked_at + self.settings.cold_start_seconds - now)
