"""Everything that one decision looks at, read from the store and learned meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from batchyard.jobs import Lane
from batchyard.settings import PoolSettings, Settings
from batchyard.store.base import ConsumerInfo, JobStore, Lease, ModelVersion, PoolOverride, SpendRow
from batchyard_scaler.policy.records import Demand, Due, Fleet, Pool
from batchyard_scaler.signals.arrivals import Arrivals, usual_slack_seconds
from batchyard_scaler.signals.demand import Waiting, demand_of, waiting_by_queue
from batchyard_scaler.signals.replicas import LIVE, Business, Zones, replicas_of
from batchyard_scaler.signals.schedule import limits_at
from batchyard_scaler.signals.speeds import Speeds
from batchyard_scaler.signals.spending import budget_left, first_hour_of_budget, spent_since
from batchyard_scaler.signals.starts import Starts

KEEP_MS = 15_000
"""How often what was spent is written down; what was learned, with it as it changes."""
LEAST_IDLE_SECONDS = 60.0
"""What a restart costs at least, where a pool does not say: somebody may be about to submit again."""
SLOW_START = 0.9
"""Of cold starts, as fast or faster than what is reckoned with."""
SEASON = "season "
"""And the id of its queue: the name under which it is noted down."""


Held = Callable[[PoolSettings, Sequence[ConsumerInfo]], int]
"""From a pool and its consumers that start or are ready: replicas that are there or asked for, registered or not."""

Most = Callable[[PoolSettings], int | None]
"""From a pool to the replicas that there are devices for, asked after `Held`; None: any number."""


class Look(NamedTuple):
    """What was seen at one moment."""

    fleet: Fleet
    now_ms: int
    live: Mapping[str, int]
    """Pool → consumers starting or ready."""


class Signals:
    """Owned by one thread. `begin` is called whenever this scaler comes to lead, and `look` while it does."""

    def __init__(self, settings: Settings, store: JobStore, *, lease: Lease | None = None) -> None:
        """`lease`: what is written down is refused where another has it."""
        self._settings = settings
        self._pools = {pool.name: pool for pool in settings.pools}
        self._store = store
        self._lease = lease
        self.begin({})

    def begin(self, learned: Mapping[str, Any]) -> None:
        """Start from what the scaler before this one noted down."""
        self._kept = dict(learned)
        self._starts = Starts(known=learned.get("starts"))
        self._speeds = Speeds(self._settings.pools, known=learned.get("speeds"))
        seasons = {name: value for name, value in learned.items() if name.startswith(SEASON)}
        self._arrivals = {int(name.removeprefix(SEASON)): Arrivals(value) for name, value in seasons.items()}
        self._learned_anew: set[int] = set()
        """Queues whose season is to be written down."""
        self._spent_until_ms: int | None = learned.get("spent_until_ms")
        self._kept_ms = 0
        self._spent: list[SpendRow] = []
        self._business = Business()
        self._zones = Zones()
        self._loaded: set[tuple[str, str]] = set()
        """Pool and version: a consumer of the pool has loaded it, or tried to."""

    def look(self, *, held: Held, asked_zones: Mapping[str, Mapping[str, int]], most: Most = lambda _: None) -> Look:
        """Read everything; Unavailable, LeaseLost. `asked_zones`: pool → zone → replicas of the last decision."""
        versions, backlog = [version for version in self._store.models() if version.active], self._store.backlog()
        consumers = [info for info in self._store.consumers() if info.pool in self._pools]
        overrides, now_ms = self._store.overrides(), self._store.now_ms()
        live = [info for info in consumers if info.state in LIVE]
        self._starts.see(live, now_ms=now_ms)
        self._speeds.see(live)
        self._keep(consumers, now_ms=now_ms)
        served = {name: [one for one in versions if serves(pool, one)] for name, pool in self._pools.items()}
        usual = {name: self._starts.percentile(name, SLOW_START, versions=mine) for name, mine in served.items()}
        serving: dict[str, list[PoolSettings]] = {version.name: [] for version in versions}
        for name, mine in served.items():
            for version in mine:
                serving[version.name].append(self._pools[name])
        waiting = waiting_by_queue(versions, backlog)
        demands = self._demands(versions, waiting, serving=serving, usual=usual, now_ms=now_ms)
        busy = self._business.of(info for info in live if info.state == "ready")
        of_pool: dict[str, list[ConsumerInfo]] = {name: [] for name in self._pools}
        for info in consumers:
            of_pool[info.pool].append(info)
        pools = [
            self._pool(
                pool,
                of_pool[name],
                served[name],
                held=held(pool, [info for info in of_pool[name] if info.state in LIVE]),
                devices=most(pool),
                asked=asked_zones.get(name, {}),
                override=overrides.get(name) or PoolOverride(pool=name),
                busy=busy,
                usual=usual[name],
                now_ms=now_ms,
            )
            for name, pool in self._pools.items()
        ]
        budget = budget_left(self._settings.budget, self._spent, now_ms=now_ms)
        fleet = Fleet(now_seconds=now_ms / 1000, pools=pools, demands=demands, budget=budget)
        return Look(fleet=fleet, now_ms=now_ms, live=Counter(info.pool for info in live))

    # --- demands ---

    def _demands(
        self,
        versions: Sequence[ModelVersion],
        waiting: Mapping[int, Waiting],
        *,
        serving: Mapping[str, Sequence[PoolSettings]],
        usual: Mapping[str, float],
        now_ms: int,
    ) -> list[Demand]:
        """Of queues that have work, or will have some within the time that a start takes."""
        arrived = self._store.arrivals()
        found = []
        for version in versions:
            pools = serving[version.name]
            horizon = max((usual[pool.name] for pool in pools), default=0.0)
            speed = self._speeds.seconds_per_unit(version, pools)
            for lane, queue_id in version.queue_ids.items():
                if queue_id not in arrived:
                    continue  # it never had a job
                mine = waiting.get(queue_id)
                season = self._see_arrivals(queue_id, arrived[queue_id], mine, now_ms=now_ms)
                foretold: Sequence[Due] = ()
                if speed is not None and lane not in version.paused:
                    foretold = season.forecast(horizon_seconds=horizon, seconds_per_unit=speed, now_ms=now_ms)
                if mine is not None or foretold:
                    demand = demand_of(version, lane, mine, seconds_per_unit=speed, now_ms=now_ms, forecast=foretold)
                    found.append(demand)
        return found

    def _see_arrivals(self, queue_id: int, total: tuple[int, int], mine: Waiting | None, *, now_ms: int) -> Arrivals:
        season = self._arrivals.setdefault(queue_id, Arrivals())
        if season.see(total, {} if mine is None else mine.buckets, now_ms=now_ms):
            self._learned_anew.add(queue_id)
        return season

    # --- pools ---

    def _pool(
        self,
        pool: PoolSettings,
        consumers: Sequence[ConsumerInfo],
        served: Sequence[ModelVersion],
        *,
        held: int,
        devices: int | None,
        asked: Mapping[str, int],
        override: PoolOverride,
        busy: set[int],
        usual: float,
        now_ms: int,
    ) -> Pool:
        """`usual`: seconds of a cold start."""
        registered = sum(info.state in LIVE for info in consumers)
        replicas = replicas_of(
            consumers,
            unregistered_since_ms=self._starts.pending(pool.name, unregistered=held - registered, now_ms=now_ms),
            starts=self._starts,
            usual_seconds=usual,
            busy=busy,
            now_ms=now_ms,
        )
        is_spot = pool.capacity == "spot"
        minimum, maximum = limits_at(pool, now_ms / 1000)
        is_scheduled = (minimum, maximum) != (pool.min, pool.max)
        if devices is None or devices >= maximum:
            devices = None
        else:
            minimum, maximum = min(minimum, devices), devices
        return Pool(
            name=pool.name,
            capacity=pool.capacity,
            models=frozenset(version.name for version in served),
            minimum=minimum,
            maximum=maximum,
            is_scheduled=is_scheduled,
            devices=devices,
            price_per_hour=pool.price_per_hour,
            speed=pool.speed,
            cold_start_seconds=usual,
            restart_cost_seconds=max(LEAST_IDLE_SECONDS, usual) if pool.idle_seconds is None else pool.idle_seconds,
            usual_slack_seconds=self._slack(served, lanes=(Lane.TOLERANT,) if is_spot else tuple(Lane)),
            replicas=replicas,
            swap_seconds=_swap_seconds(served, consumers),
            idle_for_seconds=self._business.idle_for(pool.name, replicas, now=now_ms / 1000),
            zones=self._zones.of(pool, consumers, asked=asked, patience_seconds=usual, now_ms=now_ms)
            if is_spot
            else (),
            pinned=override.pinned,
            is_paused=override.is_paused,
            never_loaded=self._never_loaded(pool, served, consumers),
        )

    def _slack(self, served: Sequence[ModelVersion], *, lanes: Sequence[Lane]) -> float | None:
        queues = [self._arrivals.get(version.queue_ids[lane]) for version in served for lane in lanes]
        return usual_slack_seconds([one.slack for one in queues if one is not None])

    def _never_loaded(
        self, pool: PoolSettings, served: Sequence[ModelVersion], consumers: Sequence[ConsumerInfo]
    ) -> list[str]:
        """Versions whose schema nobody knows. Where loading failed, each scaler has it tried once more."""
        if any(info.state == "ready" for info in consumers):
            self._loaded |= {(pool.name, version.name) for version in served}
        return [
            version.name
            for version in served
            if version.digest is None and (pool.name, version.name) not in self._loaded
        ]

    # --- what is kept ---

    def _keep(self, consumers: Sequence[ConsumerInfo], *, now_ms: int) -> None:
        """Write down what was spent since the last time, and what was learned anew."""
        if now_ms - self._kept_ms < KEEP_MS:
            return
        since_ms = now_ms if self._spent_until_ms is None else self._spent_until_ms
        spent = spent_since(since_ms, now_ms, consumers, self._pools)
        found: dict[str, Any] = {"starts": self._starts.known(), "speeds": self._speeds.known()}
        found |= {f"{SEASON}{queue_id}": self._arrivals[queue_id].known() for queue_id in self._learned_anew}
        changed = {name: value for name, value in found.items() if value and value != self._kept.get(name)}
        values = {**changed, "spent_until_ms": now_ms}
        self._store.record_signals(spent=spent, learned_values=values, lease=self._lease)
        self._kept |= changed
        self._learned_anew.clear()
        self._spent_until_ms = self._kept_ms = now_ms
        self._spent = self._store.spent(since_hour=first_hour_of_budget(now_ms))


def _swap_seconds(served: Sequence[ModelVersion], consumers: Sequence[ConsumerInfo]) -> float:
    """What putting another model into memory takes, where some consumer that is ready does not have all of them."""
    ready = [info for info in consumers if info.state == "ready"]
    absent = [one for one in served if any(info.has_loaded(one.name) is False for info in ready)]
    return max((one.load_seconds or 0.0 for one in absent if one.load_error is None), default=0.0)


def serves(pool: PoolSettings, version: ModelVersion) -> bool:
    return version.active and not {version.name, version.model}.isdisjoint(pool.models)
