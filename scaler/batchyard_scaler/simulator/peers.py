"""How others size a pool, each as a policy; and what stands between theirs, or ours, and the replicas."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchyard.settings import PoolSettings, Settings
from batchyard_scaler.policy.deciding import decide
from batchyard_scaler.policy.records import Decision, Fleet, Pool
from batchyard_scaler.render.keda import scaled_object
from batchyard_scaler.simulator.autoscaler import Autoscaler, Direct, Reading
from batchyard_scaler.simulator.engine import Policy
from batchyard_scaler.simulator.hpa import Hpa, HpaSettings

POLL_SECONDS = 5.0
OURS = "batchyard"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A way of sizing pools. `policy` and `autoscaler` remember, so they are made anew for each replay."""

    name: str
    policy: Callable[[], Policy]
    autoscaler: Callable[[Pool], Autoscaler]
    knows_spot: bool = False
    """Sizes spot pools beside on-demand ones; the others have one kind of capacity."""


def keda(*, length: float, cooldown_seconds: float = 300.0) -> Contender:
    """KEDA on a list's length: jobs that wait, not those that run, over a target a replica."""
    cooldown = "" if cooldown_seconds == 300.0 else f", cool-down {cooldown_seconds:g} s"
    return Contender(
        name=f"KEDA, list length {length:g}{cooldown}",
        policy=lambda: _reading("list length", lambda pool, fleet: waiting_jobs(pool, fleet) / length),
        autoscaler=_keda_autoscaler(cooldown_seconds=cooldown_seconds),
    )


def backlog_per_instance(*, jobs: float) -> Contender:
    """Unfinished jobs over what one instance may have before it: the wait that is accepted over the time of a job."""
    return Contender(
        name=f"backlog per instance, {jobs:g} jobs",
        policy=lambda: _reading("backlog per instance", lambda pool, fleet: unfinished_jobs(pool, fleet) / jobs),
        autoscaler=_keda_autoscaler(cooldown_seconds=300.0),
    )


def backlog_falling_back(*, jobs: float) -> Contender:
    """Backlog per instance on spot, and on demand at once as many as spot has not got."""

    def policy(fleet: Fleet) -> list[Decision]:
        spot = next(pool for pool in fleet.pools if pool.capacity == "spot")
        wanted = unfinished_jobs(spot, fleet) / jobs
        lacking = max(0.0, wanted - spot.count("ready", "starting"))
        return [
            _read("backlog per instance", pool, wanted if pool.name == spot.name else lacking) for pool in fleet.pools
        ]

    return Contender(
        name=f"backlog per instance, {jobs:g} jobs, on demand where spot is short",
        policy=lambda: policy,
        autoscaler=_keda_autoscaler(cooldown_seconds=300.0),
        knows_spot=True,
    )


def ray(*, ongoing: float = 2.0, up_seconds: float = 30.0, down_seconds: float = 600.0) -> Contender:
    """As Ray Serve does: ongoing requests over a target a replica, once that has been asked for long enough."""
    return Contender(
        name=f"Ray-style, {ongoing:g} ongoing",
        policy=lambda: _Ray(ongoing=ongoing, up_seconds=up_seconds, down_seconds=down_seconds),
        autoscaler=lambda _: Direct(),
    )


def fixed(*, replicas: int) -> Contender:
    def policy(fleet: Fleet) -> list[Decision]:
        return [
            Decision(pool=pool.name, replicas=min(replicas, pool.maximum), rule="fixed", reason="as always")
            for pool in fleet.pools
        ]

    # Its answer never changes, so that it is asked for the pictures' sake alone.
    return Contender(
        name=f"fixed at {replicas}", policy=lambda: policy, autoscaler=lambda _: Direct(every_seconds=600.0)
    )


def hold(*, seconds: float) -> Contender:
    """Wait until a job has so little time left, then keep one replica until there is no work."""

    def policy(fleet: Fleet) -> list[Decision]:
        return [_held(pool, fleet, seconds) for pool in fleet.pools]

    return Contender(name=f"hold until {seconds:g} s are left", policy=lambda: policy, autoscaler=as_rendered)


def ours() -> Contender:
    """The policy of production behind KEDA and the HorizontalPodAutoscaler, exactly as they are rendered."""
    return Contender(name=OURS, policy=lambda: decide, autoscaler=as_rendered, knows_spot=True)


def as_rendered(pool: Pool) -> Autoscaler:
    settings = PoolSettings(name=pool.name, models=tuple(pool.models), min=pool.minimum, max=pool.maximum)
    document = scaled_object(Settings(state_dir=Path(), pools=(settings,)), settings)
    return Hpa(HpaSettings.from_scaled_object(document))


def unfinished_jobs(pool: Pool, fleet: Fleet) -> int:
    """Of the queues that the pool serves."""
    return sum(due.jobs for demand in fleet.demands if pool.may_do(demand) for due in demand.due)


def waiting_jobs(pool: Pool, fleet: Fleet) -> int:
    return unfinished_jobs(pool, fleet) - sum(replica.is_busy for replica in pool.replicas)


def _keda_autoscaler(*, cooldown_seconds: float) -> Callable[[Pool], Autoscaler]:
    return lambda pool: Hpa(
        HpaSettings(
            minimum=pool.minimum,
            maximum=pool.maximum,
            polling_seconds=POLL_SECONDS,
            cooldown_seconds=cooldown_seconds,
        )
    )


def _reading(rule: str, value_of: Callable[[Pool, Fleet], float]) -> Policy:
    def policy(fleet: Fleet) -> list[Decision]:
        return [_read(rule, pool, value_of(pool, fleet)) for pool in fleet.pools]

    return policy


def _read(rule: str, pool: Pool, value: float) -> Reading:
    return Reading(pool=pool.name, replicas=math.ceil(value), rule=rule, reason=rule, value=value)


def _held(pool: Pool, fleet: Fleet, seconds: float) -> Decision:
    left = min(
        (due.in_seconds for demand in fleet.demands if demand.model in pool.models for due in demand.due),
        default=math.inf,
    )
    is_needed = left <= seconds or (math.isfinite(left) and pool.count("starting", "ready") > 0)
    wait = None if is_needed or math.isinf(left) else left - seconds
    return Decision(pool=pool.name, replicas=int(is_needed), rule="hold", reason="held", next_look_seconds=wait)


class _Ray:
    """Changes its number only where every look of the delay asked for more, or every one for fewer."""

    def __init__(self, *, ongoing: float, up_seconds: float, down_seconds: float) -> None:
        self._ongoing = ongoing
        self._up_seconds = up_seconds
        self._down_seconds = down_seconds
        self._replicas: dict[str, int] = {}
        self._more_since: dict[str, float] = {}
        self._fewer_since: dict[str, float] = {}

    def __call__(self, fleet: Fleet) -> Sequence[Decision]:
        return [
            Decision(
                pool=pool.name,
                replicas=self._decide(pool, unfinished_jobs(pool, fleet), fleet.now_seconds),
                rule="ongoing",
                reason="ongoing requests",
            )
            for pool in fleet.pools
        ]

    def _decide(self, pool: Pool, ongoing: int, now: float) -> int:
        name, current = pool.name, self._replicas.get(pool.name, pool.minimum)
        wanted = min(pool.maximum, max(pool.minimum, math.ceil(ongoing / self._ongoing)))
        since = now
        if wanted > current:
            self._fewer_since.pop(name, None)
            since, delay = self._more_since.setdefault(name, now), self._up_seconds
        elif wanted < current:
            self._more_since.pop(name, None)
            since, delay = self._fewer_since.setdefault(name, now), self._down_seconds
        else:
            self._more_since.pop(name, None)
            self._fewer_since.pop(name, None)
            delay = math.inf
        if now - since >= delay:
            self._more_since.pop(name, None)
            self._fewer_since.pop(name, None)
            current = wanted
        self._replicas[name] = current
        return current


CONTENDERS = "batchyard, fixed:N, keda:LENGTH, backlog:JOBS, ray:ONGOING, hold:SECONDS"
"""How contenders are named on the command line."""


def contender(text: str) -> Contender:
    """A contender by its name, such as `keda:5`. Raises ValueError."""
    name, _, number = text.partition(":")
    made: dict[str, Callable[[float], Contender]] = {
        "fixed": lambda value: fixed(replicas=int(value)),
        "keda": lambda value: keda(length=value),
        "backlog": lambda value: backlog_per_instance(jobs=value),
        "ray": lambda value: ray(ongoing=value),
        "hold": lambda value: hold(seconds=value),
    }
    if text == "batchyard":
        return ours()
    is_number = number.isdecimal() if name == "fixed" else number.replace(".", "", 1).isdecimal()
    if name not in made or not is_number or float(number) <= 0:
        raise ValueError(f"{text} is no policy; there are {CONTENDERS}, each number above 0, N a whole one")
    return made[name](float(number))
