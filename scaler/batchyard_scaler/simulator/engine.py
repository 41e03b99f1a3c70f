"""The replay: arrivals, what happens of itself, and decisions, one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from batchyard.spot_trace import Spot
from batchyard_scaler.policy.records import Budget, Decision, Fleet, Pool
from batchyard_scaler.simulator.autoscaler import SYNC_SECONDS, Autoscaler, Direct
from batchyard_scaler.simulator.replicas import Spent
from batchyard_scaler.simulator.service import Service, World
from batchyard_scaler.simulator.trace import Floats, Trace

Policy = Callable[[Fleet], Sequence[Decision]]
GIVE_UP_SECONDS = 86_400.0
"""So long after the trace's end, jobs that nobody has finished are given up."""


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
        Service(trace, pools=pools, spot=spot or {}, world=world or World()),
        trace,
        policy=policy,
        autoscalers=[autoscaler(pool) for pool in pools],
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
        service: Service,
        trace: Trace,
        *,
        policy: Policy,
        autoscalers: Sequence[Autoscaler],
        budget: Budget,
        remembers: bool,
    ) -> None:
        self._service = service
        self._trace = trace
        self._policy = policy
        self._autoscalers = autoscalers
        """In the order of the service's pools."""
        self._budget = budget
        self._remembers = remembers
        self._look_at = 0.0
        self._is_holding = False
        """Nothing but an arrival would change the decision before `_look_at`."""
        self._seen = -1
        """What had happened by the last look."""
        self._decisions = 0
        self._moments: list[Moment] = []

    def run(self, on_progress: Callable[[float], None]) -> Replayed:
        arrivals, end, service = self._trace.arrive_at.tolist(), self._trace.seconds, self._service
        index, count = 0, len(arrivals)
        while True:
            event_at = service.next_at
            if index < count and arrivals[index] <= event_at and arrivals[index] <= self._look_at:
                self._arrive(index, arrivals[index])
                index += 1
                continue
            at = min(event_at, self._look_at)
            if service.left == 0 and at >= end:
                return self._result(max(end, *service.finished))
            if at > end + GIVE_UP_SECONDS:
                return self._result(end + GIVE_UP_SECONDS)
            if event_at <= self._look_at:
                service.step()
            elif self._nothing_new(at):
                self._look_at = self._next_look(at)
            else:
                self._look(at)
                if self._decisions % 256 == 0:
                    on_progress(min(1.0, at / end))

    def _nothing_new(self, now: float) -> bool:
        """Whether a poll between two syncs may be left out: nothing happened since the last look, and no replica is
        idle, so that no policy would end the last one."""
        service = self._service
        if self._is_holding or now % SYNC_SECONDS == 0:
            return False
        return service.happened == self._seen and not any(p.idle for p in service.pools)

    def _arrive(self, job: int, now: float) -> None:
        if self._is_holding:
            self._is_holding = False
            self._look_at = min(self._look_at, self._next_look(now))
        self._service.arrive(job, now)

    def _result(self, ended_at: float) -> Replayed:
        self._service.end(ended_at)
        pools = self._service.pools
        return Replayed(
            trace=self._trace,
            pools=[pool.settings for pool in pools],
            finished_at=np.array(self._service.finished),
            spent={pool.name: pool.spent for pool in pools},
            ended_at=ended_at,
            decisions=self._decisions,
            moments=self._moments,
        )

    def _look(self, now: float) -> None:
        service = self._service
        service.now = now
        self._seen = service.happened
        fleet = Fleet(
            now_seconds=self._trace.begins_at_seconds + now,
            pools=[pool.told(now) for pool in service.pools],
            demands=[queue.demand(now) for queue in service.queues.values() if queue.has_work],
            budget=self._budget,
        )
        decisions = {decision.pool: decision for decision in self._policy(fleet)}
        self._decisions += 1
        for pool, autoscaler in zip(service.pools, self._autoscalers, strict=True):
            decision = decisions[pool.name]
            wanted = autoscaler.look(now, decision, current=pool.wanted)
            service.scale(pool, min(wanted, pool.settings.maximum), decision.zones)
        if self._remembers:
            self._remember(now)
        self._plan_next_look(now, decisions.values(), has_work=bool(fleet.demands))

    def _plan_next_look(self, now: float, decisions: Collection[Decision], *, has_work: bool) -> None:
        """On the autoscalers' beat; where there is nothing and nothing is wanted, not before the policy asks to."""
        self._look_at = self._next_look(now)
        self._is_holding = False
        is_at_rest = not any(pool.replicas or pool.wanted for pool in self._service.pools)
        if is_at_rest and not any(decision.replicas for decision in decisions):
            waits = [decision.next_look_seconds for decision in decisions]
            hold = min((now + wait for wait in waits if wait is not None), default=math.inf)
            if math.isfinite(hold) or not has_work:
                self._is_holding = True
                self._look_at = max(self._look_at, hold)

    def _next_look(self, now: float) -> float:
        return min(
            autoscaler.next_look(now, current=pool.wanted)
            for pool, autoscaler in zip(self._service.pools, self._autoscalers, strict=True)
        )

    def _remember(self, now: float) -> None:
        self._moments.append(
            Moment(
                at_seconds=now,
                backlog_seconds=sum(queue.work_seconds() for queue in self._service.queues.values()),
                replicas={pool.name: pool.replicas for pool in self._service.pools},
            )
        )
