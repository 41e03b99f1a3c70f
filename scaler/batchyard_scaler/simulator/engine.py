"""The replay: arrivals, cold starts, service, preemptions and decisions, one event after the other."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from batchyard_scaler.policy.records import Budget, Decision, Fleet, Pool
from batchyard_scaler.simulator.autoscaler import Autoscaler, Direct
from batchyard_scaler.simulator.queues import Ledger, SimulatedQueue, queues_of
from batchyard_scaler.simulator.replicas import SimulatedPool, SimulatedReplica, SimulatedZone, Spent
from batchyard_scaler.simulator.trace import Floats, Spot, SpotTrace, Trace

Policy = Callable[[Fleet], Sequence[Decision]]
GIVE_UP_SECONDS = 86_400.0
"""So long after the trace's end, jobs that nobody has finished are given up."""


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


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What a replay looked like when a decision was made; for plots."""

    at_seconds: float
    backlog_seconds: float
    replicas: Mapping[str, int]


@dataclass(kw_only=True)
class Replayed:
    """What came of a replay."""

    trace: Trace
    pools: Sequence[Pool]
    finished_at: Floats
    """By job; `nan`: never."""
    spent: Mapping[str, Spent]
    """By pool."""
    ended_at: float
    decisions: int
    moments: list[Moment] = field(default_factory=list)


def replay(
    trace: Trace,
    *,
    pools: Sequence[Pool],
    policy: Policy,
    autoscaler: Callable[[Pool], Autoscaler] = lambda _: Direct(),
    spot: Spot | None = None,
    world: World | None = None,
    budget: Budget | None = None,
    remembers: bool = False,
    on_progress: Callable[[float], None] | None = None,
) -> Replayed:
    """Replay a trace against a policy. Deterministic for a seed.

    `autoscaler` stands between the decisions for a pool and its replicas; `spot` has the capacity of each zone that a
    pool names. `remembers`: keep what it looked like at each decision. Jobs past their deadline are finished all the
    same, so that a policy cannot save by letting them expire.
    """
    running = _Replay(
        trace,
        pools=pools,
        policy=policy,
        autoscalers={pool.name: autoscaler(pool) for pool in pools},
        spot=spot or {},
        world=world or World(),
        budget=budget or Budget(),
        remembers=remembers,
    )
    return running.run(on_progress or (lambda _: None))


def replay_apart(
    trace: Trace,
    *,
    pools: Sequence[Pool],
    policy: Callable[[], Policy],
    autoscaler: Callable[[Pool], Autoscaler],
    world: World | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> list[Replayed]:
    """Replay pools one by one that have no model in common: the same as all together, in a fraction of the time."""
    found = []
    for number, pool in enumerate(pools):
        wanted = [index for index, name in enumerate(trace.models) if name in pool.models]
        found.append(replay(trace.of_models(wanted), pools=[pool], policy=policy(), autoscaler=autoscaler, world=world))
        if on_progress:
            on_progress((number + 1) / len(pools))
    return found


class _Replay:
    def __init__(
        self,
        trace: Trace,
        *,
        pools: Sequence[Pool],
        policy: Policy,
        autoscalers: Mapping[str, Autoscaler],
        spot: Spot,
        world: World,
        budget: Budget,
        remembers: bool,
    ) -> None:
        self._trace = trace
        self._policy = policy
        self._autoscalers = autoscalers
        self._world = world
        self._budget = budget
        self._remembers = remembers
        self._random = np.random.default_rng(world.seed)
        self._ledger = Ledger(trace)
        self._queues = queues_of(trace, self._ledger, urgent_seconds=world.urgent_seconds)
        self._zones = {name: SimulatedZone(name) for name in spot}
        self._pools = [self._pool(settings) for settings in pools]
        self._servers = {key: self._servers_of(queue) for key, queue in self._queues.items()}
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = itertools.count()
        self._now = 0.0
        self._left = len(trace)
        self._look_at = 0.0
        self._hold_until: float | None = None
        """Where nothing but an arrival or this moment would change the decision: when the policy wants to look."""
        self._finished = [math.nan] * len(trace)
        self._decisions = 0
        self._moments: list[Moment] = []
        for zone, capacity in spot.items():
            self._await_change(self._zones[zone], capacity, 0)

    def _pool(self, settings: Pool) -> SimulatedPool:
        lanes = [
            [queue for queue in self._queues.values() if queue.is_tolerant == is_tolerant and _serves(settings, queue)]
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
        pools = [pool for pool in self._pools if any(queue in lane for lane in pool.lanes)]
        return sorted(pools, key=lambda pool: pool.settings.capacity != "spot")

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run(self, on_progress: Callable[[float], None]) -> Replayed:
        arrivals = self._trace.arrive_at.tolist()
        models = self._trace.model.tolist()
        tolerant = self._trace.is_tolerant.tolist()
        end = self._trace.seconds
        index, count, events = 0, len(arrivals), self._events
        while True:
            event_at = events[0][0] if events else math.inf
            if index < count and arrivals[index] <= event_at and arrivals[index] <= self._look_at:
                self._now = arrivals[index]
                self._arrive(index, self._queues[models[index], tolerant[index]])
                index += 1
                continue
            at = min(event_at, self._look_at)
            if self._left == 0 and at >= end:
                self._now = max(end, *self._finished)
                break
            if at > end + GIVE_UP_SECONDS:
                self._now = end + GIVE_UP_SECONDS
                break
            self._now = at
            if event_at <= self._look_at:
                _, _, act, arguments = heapq.heappop(events)
                act(*arguments)
            else:
                self._look()
                if self._decisions % 256 == 0:
                    on_progress(min(1.0, self._now / end))
        return self._result()

    def _at(self, time: float, act: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._events, (time, next(self._order), act, arguments))

    def _result(self) -> Replayed:
        for pool in self._pools:
            for replica in [*pool.live, *pool.draining]:
                self._end(replica)
        return Replayed(
            trace=self._trace,
            pools=[pool.settings for pool in self._pools],
            finished_at=np.array(self._finished),
            spent={pool.name: pool.spent for pool in self._pools},
            ended_at=self._now,
            decisions=self._decisions,
            moments=self._moments,
        )

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def _arrive(self, job: int, queue: SimulatedQueue) -> None:
        queue.count_in(job, self._ledger.bucket[job])
        if self._hold_until is not None:
            self._hold_until = None
            self._look_at = min(self._look_at, self._next_look())
        self._offer(job, queue)

    def _offer(self, job: int, queue: SimulatedQueue) -> None:
        for pool in self._servers[queue.model, queue.is_tolerant]:
            if pool.idle:
                replica = pool.idle_replica(queue.model)
                pool.note_busy(replica, self._now)
                self._start_job(replica, job, queue)
                return
        queue.add(job)

    def _start_job(self, replica: SimulatedReplica, job: int, queue: SimulatedQueue) -> None:
        queue.running += 1
        now = self._now
        # The first model comes with the start.
        swap = replica.pool.settings.swap_seconds if replica.model not in {None, queue.model} else 0.0
        replica.model, replica.job, replica.since, replica.swap_until = queue.model, job, now, now + swap
        end = now + swap + self._ledger.work[job] / replica.pool.settings.speed
        heapq.heappush(self._events, (end, next(self._order), self._finish, (replica, job, queue)))

    def _finish(self, replica: SimulatedReplica, job: int, queue: SimulatedQueue) -> None:
        if replica.state == "gone":
            return
        now, spent = self._now, replica.pool.spent
        self._finished[job] = now
        self._left -= 1
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
            replica.pool.note_idle(replica, self._now)
        else:
            self._start_job(replica, queue.take(self._now), queue)

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
            if pressing.next_start_by() - swap < self._now + self._world.urgent_seconds:
                return pressing
            return next((queue for queue in waiting if queue.model == replica.model), pressing)
        return None

    # --- replicas -----------------------------------------------------------------------------------------------------

    def _scale(self, pool: SimulatedPool, wanted: int, preferred: Mapping[str, int]) -> None:
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
                zone.asked_since = self._now

    def _start(self, pool: SimulatedPool, zone: str) -> None:
        ready_at = self._now + self._cold_start(pool.settings)
        replica = SimulatedReplica(pool, zone, asked_at=self._now, ready_at=ready_at)
        pool.live.append(replica)
        pool.spent.starts += 1
        self._at(ready_at, self._become_ready, replica)

    def _cold_start(self, pool: Pool) -> float:
        p50, p90 = self._world.cold_start_p50_seconds, pool.cold_start_seconds
        if p50 is None:
            return p90
        sigma = math.log(p90 / p50) / 1.2815515655446004
        return float(self._random.lognormal(math.log(p50), sigma))

    def _become_ready(self, replica: SimulatedReplica) -> None:
        if replica.state == "starting":
            replica.state = "ready"
            replica.pool.spent.cold_seconds += self._now - replica.asked_at
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
        pool, now = replica.pool, self._now
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
        for pool in self._pools:
            if zone in pool.zones:
                self._fill(pool, {})
        self._await_change(zone, capacity, index + 1)

    def _preempt(self, zone: SimulatedZone) -> None:
        """Take the node of one replica of the zone: it drains within the notice."""
        there = [
            replica for pool in self._pools for replica in (*pool.live, *pool.draining) if replica.zone == zone.name
        ]
        replica = there[int(self._random.integers(len(there)))]
        replica.pool.spent.preemptions += 1
        zone.note_preemption(self._now)
        if replica.state != "draining":
            self._drain(replica)
        if replica.state == "draining":
            # The node counts as gone from the news on.
            replica.zone = ""
            zone.used -= 1
            self._at(self._now + self._world.notice_seconds, self._cut_off, replica)
        self._look_at = min(self._look_at, self._next_look())

    def _cut_off(self, replica: SimulatedReplica) -> None:
        if replica.state == "gone":
            return
        job = replica.job
        self._end(replica)
        if job is not None:
            replica.pool.spent.requeued += 1
            queue = self._queues[int(self._trace.model[job]), bool(self._trace.is_tolerant[job])]
            queue.running -= 1
            self._offer_again(job, queue)

    def _offer_again(self, job: int, queue: SimulatedQueue) -> None:
        if any(pool.idle for pool in self._servers[queue.model, queue.is_tolerant]):
            self._offer(job, queue)
        else:
            queue.add(job, is_first=True)

    # --- decisions ----------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        now = self._now
        fleet = Fleet(
            now_seconds=self._trace.begins_at_seconds + now,
            pools=[pool.told(now) for pool in self._pools],
            demands=[queue.demand(now) for queue in self._queues.values() if queue.has_work],
            budget=self._budget,
        )
        decisions = {decision.pool: decision for decision in self._policy(fleet)}
        self._decisions += 1
        for pool in self._pools:
            decision = decisions[pool.name]
            wanted = self._autoscalers[pool.name].look(now, decision, current=pool.wanted)
            self._scale(pool, min(wanted, pool.settings.maximum), decision.zones)
        self._remember()
        self._look_at = self._next_look()
        self._hold_until = None
        if self._is_at_rest() and not any(decision.replicas for decision in decisions.values()):
            waits = [decision.next_look_seconds for decision in decisions.values()]
            hold = min((now + wait for wait in waits if wait is not None), default=math.inf)
            if math.isfinite(hold) or not fleet.demands:
                self._hold_until = hold
                self._look_at = max(self._look_at, hold)

    def _is_at_rest(self) -> bool:
        return not any(pool.replicas or pool.wanted for pool in self._pools)

    def _next_look(self) -> float:
        return min(
            autoscaler.next_look(self._now, current=pool.wanted)
            for pool, autoscaler in zip(self._pools, self._autoscalers.values(), strict=True)
        )

    def _remember(self) -> None:
        if self._remembers:
            self._moments.append(
                Moment(
                    at_seconds=self._now,
                    backlog_seconds=sum(queue.work_seconds() for queue in self._queues.values()),
                    replicas={pool.name: pool.replicas for pool in self._pools},
                )
            )


def _serves(pool: Pool, queue: SimulatedQueue) -> bool:
    return queue.model_name in pool.models
