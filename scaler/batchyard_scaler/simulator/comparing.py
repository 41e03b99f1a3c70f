"""Several ways of sizing pools on one trace, and the bound beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from batchyard.spot_trace import Spot
from batchyard_scaler.policy.records import Pool
from batchyard_scaler.simulator.bound import Unbounded, bound
from batchyard_scaler.simulator.engine import Moment, replay, replay_apart
from batchyard_scaler.simulator.measures import Measures, measure, pareto
from batchyard_scaler.simulator.peers import Contender
from batchyard_scaler.simulator.service import World
from batchyard_scaler.simulator.trace import Trace


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    trace: str
    jobs: int
    days: float
    mean_demand: float
    """Replicas of speed 1 that the work alone keeps busy."""
    assumptions: Mapping[str, str]
    """What the figures rest on: prices, cold starts, deadlines, seed."""
    bound_cost: float | None
    """What the cheapest fleet would have cost that knew everything beforehand; None: not known."""
    bound_note: str = ""
    """Why it is not known, where it was asked for."""
    measures: Sequence[Measures]

    @property
    def front(self) -> list[str]:
        """Contenders that no other beats in both cost and share on time."""
        return [found.contender for found in pareto(self.measures)]

    def over_bound(self, found: Measures) -> float | None:
        return found.cost / self.bound_cost if self.bound_cost else None


def compare(
    trace: Trace,
    *,
    pools: Sequence[Pool],
    contenders: Sequence[Contender],
    spot: Spot,
    world: World,
    assumptions: Mapping[str, str],
    with_bound: bool = True,
    step_seconds: float = 300.0,
    on_progress: Callable[[str, float], None] = lambda _name, _share: None,
    on_moments: Callable[[str, Sequence[Moment]], None] | None = None,
) -> Comparison:
    """Replay a trace against each contender.

    Who knows one kind of capacity has the on-demand pools where there are any, others have all. Pools
    without a model in common are replayed one by one.
    """
    price = _price_of_work(pools)
    measured = []
    for contender in contenders:
        name = contender.name
        mine = pools if contender.knows_spot else _of_one_kind(pools)

        def progress(share: float, *, name: str = name) -> None:
            on_progress(name, share)

        if _are_apart(mine):
            done = replay_apart(
                trace,
                pools=mine,
                policy=contender.policy,
                autoscaler=contender.autoscaler,
                world=world,
                on_progress=progress,
            )
        else:
            done = [
                replay(
                    trace,
                    pools=mine,
                    policy=contender.policy(),
                    autoscaler=contender.autoscaler,
                    spot=spot,
                    world=world,
                    on_progress=progress,
                    remembers=on_moments is not None,
                )
            ]
            if on_moments:
                on_moments(name, done[0].moments)
        measured.append(measure(name, done, price_per_hour=price))
    cost, note = None, ""
    if with_bound:
        try:
            cost = bound(trace, pools=pools, spot=spot, step_seconds=step_seconds).cost
        except Unbounded as unbounded:
            note = unbounded.message
    return Comparison(
        trace=trace.name,
        jobs=len(trace),
        days=trace.seconds / 86_400,
        mean_demand=trace.mean_demand,
        assumptions=assumptions,
        bound_cost=cost,
        bound_note=note,
        measures=measured,
    )


def _of_one_kind(pools: Sequence[Pool]) -> Sequence[Pool]:
    return [pool for pool in pools if pool.capacity == "on_demand"] or pools


def _are_apart(pools: Sequence[Pool]) -> bool:
    """Whether no two pools share a model; one pool is replayed as it is."""
    models = [model for pool in pools for model in pool.models]
    return len(pools) > 1 and len(models) == len(set(models))


def _price_of_work(pools: Sequence[Pool]) -> float | None:
    """Of an hour of work on the cheapest on-demand replica; None where a price is not known."""
    prices = [pool.price_per_hour / pool.speed for pool in _of_one_kind(pools) if pool.price_per_hour is not None]
    return min(prices, default=None) or None
