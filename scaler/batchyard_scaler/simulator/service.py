"""What happens in a replay between two decisions: jobs are served, replicas start and end, spot nodes come and go."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from batchyard.spot_trace import Spot, SpotTrace
from batchyard_scaler.policy.records import Pool
from batchyard_scaler.simulator.queues import Ledger, SimulatedQueue, queues_of
from batchyard_scaler.simulator.replicas import SimulatedPool, SimulatedReplica, SimulatedZone
from batchyard_scaler.simulator.trace import Trace

P90 = 1.2815515655446004
"""The standard normal distribution's 90 % point."""


@dataclass(frozen=True, kw_only=True)
class World:
    """How things behave that no policy decides."""

    notice_seconds: float = 30.0
    """Between the news that a spot node goes and its end."""
    urgent_seconds: float = 10.0
    """A job whose latest safe start is as near goes ahead."""
    cold_start_p50_seconds: float | None = None
    """With it, starts are drawn log-normally with this median and the pool's p90; without, each takes the p90."""
    seed: int = 0


class Service:
    """Queues, pools and zones, and the events that lie ahead. Owned by the replay."""

    def __init__(self, trace: Trace, *, pools: Sequence[Pool], spot: Spot, world: World) -> None:
        self.now = 0.0
        self.left = len(trace)
        """Jobs that are not finished."""
        self.happened = 0
        """Events and arrivals so far."""
        self.finished = [math.nan] * len(trace)
        self._trace = trace
        self._world = world
        self._random = np.random.default_rng(world.seed)
        self._ledger = Ledger(trace)
        self._models: list[int] = trace.model.tolist()
        self._tolerant: list[bool] = trace.is_tolerant.tolist()
        self.queues = queues_of(trace, self._ledger, urgent_seconds=world.urgent_seconds)
        self._zones = {name: SimulatedZone(name) for name in spot}
        self.pools = [self._pool(settings) for settings in pools]
        self._servers = {key: self._servers_of(queue) for key, queue in self.queues.items()}
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = itertools.count()
        for zone, capacity in spot.items():
            self._await_change(self._zones[zone], capacity, 0)

    @property
    def next_at(self) -> float:
        """When the next event is."""
        return self._events[0][0] if self._events else math.inf

    def step(self) -> None:
        """Let the next event happen."""
        self.happened += 1
        self.now, _, act, arguments = heapq.heappop(self._events)
        act(*arguments)

    def end(self, now: float) -> None:
        """Let every replica go."""
        self.now = now
        for pool in self.pools:
            for replica in [*pool.live, *pool.draining]:
                self._end(replica)

    def arrive(self, job: int, now: float) -> None:
        self.now = now
        self.happened += 1
        queue = self._queue_of(job)
        queue.count_in(job, self._ledger.bucket[job])
        self._offer(job, queue)

    def _pool(self, settings: Pool) -> SimulatedPool:
        lanes = [
            [queue for queue in self.queues.values() if queue.is_tolerant == is_tolerant and _serves(settings, queue)]
            for is_tolerant in ((False, True) if settings.capacity == "on_demand" else (True,))
        ]
        zones = [self._zones[zone.name] for zone in settings.zones if zone.name in self._zones]
        settings = msgspec.structs.replace(settings, usual_slack_seconds=self._usual_slack(settings))
        return SimulatedPool(settings, lanes=[lane for lane in lanes if lane] or [[]], zones=zones)

    def _usual_slack(self, pool: Pool) -> float | None:
        """What 19 of 20 jobs of its models are given at least; production learns it from those that have come."""
        names = self._trace.models
        mine = np.isin(self._trace.model, [index for index, name in enumerate(names) if name in pool.models])
        slack = (self._trace.due_at - self._trace.arrive_at)[mine]
        usual = float(np.quantile(slack, 0.05, method="lower")) if len(slack) else math.inf
        return usual if math.isfinite(usual) else None

    def _servers_of(self, queue: SimulatedQueue) -> list[SimulatedPool]:
        """Spot first: what needs no on-demand replica leaves it to the firm lane."""
        pools = [pool for pool in self.pools if any(queue in lane for lane in pool.lanes)]
        return sorted(pools, key=lambda pool: pool.settings.capacity != "spot")

    def _at(self, time: float, act: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._events, (time, next(self._order), act, arguments))

    def _queue_of(self, job: int) -> SimulatedQueue:
        return self.queues[self._models[job], self._tolerant[job]]

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def _offer(self, job: int, queue: SimulatedQueue) -> None:
        for pool in self._servers[queue.model, queue.is_tolerant]:
            if pool.idle:
                replica = pool.idle_replica(queue.model)
                pool.note_busy(replica, self.now)
                self._start_job(replica, job, queue)
                return
        queue.add(job)

    def _start_job(self, replica: SimulatedReplica, job: int, queue: SimulatedQueue) -> None:
        queue.running += 1
        now = self.now
        # The first model comes with the start.
        swap = replica.pool.settings.swap_seconds if replica.model not in {None, queue.model} else 0.0
        replica.model, replica.job, replica.since, replica.swap_until = queue.model, job, now, now + swap
        end = now + swap + self._ledger.work[job] / replica.pool.settings.speed
        heapq.heappush(self._events, (end, next(self._order), self._finish, (replica, job, queue)))

    def _finish(self, replica: SimulatedReplica, job: int, queue: SimulatedQueue) -> None:
        if replica.state == "gone":
            return
        now, spent = self.now, replica.pool.spent
        self.finished[job] = now
        self.left -= 1
        queue.running -= 1
        queue.count_out(job, self._ledger.bucket[job])
        spent.swap_seconds += replica.swap_until - replica.since
        spent.busy_seconds += now - replica.swap_until
        replica.job = None
        if replica.state == "draining":
            self._end(replica)
        else:
            self._take_next(replica)

    def _take_next(self, replica: SimulatedReplica) -> None:
        queue = self._choose(replica)
        if queue is None:
            replica.pool.note_idle(replica, self.now)
        else:
            self._start_job(replica, queue.take(self.now), queue)

    def _choose(self, replica: SimulatedReplica) -> SimulatedQueue | None:
        """The firm lane first. Within a lane the model in memory, unless another queue's job cannot wait any longer;
        where nothing of it waits, the queue whose first job must start soonest."""
        for lane in replica.pool.lanes:
            waiting = [queue for queue in lane if queue.waiting]
            if len(waiting) < 2:
                if waiting:
                    return waiting[0]
                continue
            pressing = min(waiting, key=SimulatedQueue.next_start_by)
            swap = replica.pool.settings.swap_seconds
            if pressing.next_start_by() - swap < self.now + self._world.urgent_seconds:
                return pressing
            return next((queue for queue in waiting if queue.model == replica.model), pressing)
        return None

    # --- replicas -----------------------------------------------------------------------------------------------------

    def scale(self, pool: SimulatedPool, wanted: int, preferred: Mapping[str, int]) -> None:
        pool.wanted = wanted
        for replica in pool.victims(len(pool.live) - wanted) if wanted < len(pool.live) else ():
            self._drain(replica)
        self._fill(pool, preferred)

    def _fill(self, pool: SimulatedPool, preferred: Mapping[str, int]) -> None:
        """Start what is wanted, as far as there are nodes for it."""
        while len(pool.live) < pool.wanted:
            zone = None
            if pool.zones:
                zone = pool.zone_with_room(dict(preferred))
                if zone is None:
                    break
                zone.used += 1
            self._start(pool, zone.name if zone else "")
        for zone in pool.zones:
            if len(pool.live) >= pool.wanted or zone.used < zone.nodes:
                zone.asked_since = None
            elif zone.asked_since is None:
                zone.asked_since = self.now

    def _start(self, pool: SimulatedPool, zone: str) -> None:
        ready_at = self.now + self._cold_start(pool.settings)
        replica = SimulatedReplica(pool, zone, asked_at=self.now, ready_at=ready_at)
        pool.live.append(replica)
        pool.spent.starts += 1
        self._at(ready_at, self._become_ready, replica)

    def _cold_start(self, pool: Pool) -> float:
        p50, p90 = self._world.cold_start_p50_seconds, pool.cold_start_seconds
        if p50 is None:
            return p90
        sigma = math.log(p90 / p50) / P90
        return float(self._random.lognormal(math.log(p50), sigma))

    def _become_ready(self, replica: SimulatedReplica) -> None:
        if replica.state == "starting":
            replica.state = "ready"
            replica.pool.spent.cold_seconds += self.now - replica.asked_at
            self._take_next(replica)

    def _drain(self, replica: SimulatedReplica) -> None:
        """No further job; the one at hand is finished first."""
        pool = replica.pool
        if replica.job is None:
            self._end(replica)
        else:
            replica.state = "draining"
            pool.live.remove(replica)
            pool.draining.append(replica)

    def _end(self, replica: SimulatedReplica) -> None:
        """The replica is gone, and is paid until now; a job that it still had is cut off."""
        pool, now = replica.pool, self.now
        (pool.draining if replica.state == "draining" else pool.live).remove(replica)
        if replica in pool.idle:
            pool.note_busy(replica, now)
        if replica.state == "starting":
            pool.spent.cold_seconds += now - replica.asked_at
        if replica.job is not None:
            pool.spent.lost_seconds += now - replica.since
        if replica.zone:
            self._zones[replica.zone].used -= 1
        pool.spent.replica_seconds += now - replica.asked_at
        replica.state = "gone"

    # --- spot ---------------------------------------------------------------------------------------------------------

    def _await_change(self, zone: SimulatedZone, capacity: SpotTrace, index: int) -> None:
        at, change = capacity.change(index)
        self._at(at, self._change_zone, zone, capacity, index, change)

    def _change_zone(self, zone: SimulatedZone, capacity: SpotTrace, index: int, change: int) -> None:
        """A zone gains or loses nodes. As likely as a node is in use, the one that is lost is a replica's."""
        for _ in range(-change):
            if zone.used and self._random.random() < zone.used / zone.nodes:
                self._preempt(zone)
            zone.nodes -= 1
        zone.nodes += max(0, change)
        for pool in self.pools:
            if zone in pool.zones:
                self._fill(pool, {})
        self._await_change(zone, capacity, index + 1)

    def _preempt(self, zone: SimulatedZone) -> None:
        """Take the node of one replica of the zone: it drains within the notice."""
        there = [
            replica for pool in self.pools for replica in (*pool.live, *pool.draining) if replica.zone == zone.name
        ]
        replica = there[int(self._random.integers(len(there)))]
        replica.pool.spent.preemptions += 1
        zone.note_preemption(self.now)
        if replica.state != "draining":
            self._drain(replica)
        if replica.state == "draining":
            # The node counts as gone from the news on.
            replica.zone = ""
            zone.used -= 1
            self._at(self.now + self._world.notice_seconds, self._cut_off, replica)

    def _cut_off(self, replica: SimulatedReplica) -> None:
        if replica.state == "gone":
            return
        job = replica.job
        self._end(replica)
        if job is not None:
            replica.pool.spent.requeued += 1
            queue = self._queue_of(job)
            queue.running -= 1
            self._offer_again(job, queue)

    def _offer_again(self, job: int, queue: SimulatedQueue) -> None:
        if any(pool.idle for pool in self._servers[queue.model, queue.is_tolerant]):
            self._offer(job, queue)
        else:
            queue.add(job, is_first=True)


def _serves(pool: Pool, queue: SimulatedQueue) -> bool:
    return queue.model_name in pool.models
