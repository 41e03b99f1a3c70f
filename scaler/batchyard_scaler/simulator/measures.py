"""What a replay is judged by. Cost alone can be gamed, so it always stands beside the share on time."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from batchyard_scaler.simulator.engine import Replayed

HOUR = 3600.0


class Measures(msgspec.Struct, frozen=True, kw_only=True):
    contender: str
    cost: float
    """In dollars; replica-hours where a pool's price is not known."""
    cost_unit: str
    cost_over_work: float
    """Cost over that of the work alone, on the cheapest on-demand replica and without an idle second."""
    on_time_jobs: float
    """Share of all jobs, by number."""
    on_time_work: float
    """Share of all jobs, by their work."""
    lateness_p99_seconds: float
    """Of all jobs; those on time are 0 s late, those never finished as late as the replay could tell."""
    jobs: int
    lost_jobs: int
    """Never finished."""
    work_hours: float
    replica_hours: float
    starts: int
    preemptions: int
    requeued_jobs: int
    cold_hours: float
    idle_hours: float
    swap_hours: float
    preempted_hours: float
    """Spent on jobs that a preemption cut off."""
    decisions: int


def measure(contender: str, replays: Sequence[Replayed], *, price_per_hour: float | None = None) -> Measures:
    """Measures of one contender: of one replay, or of several independent ones taken together.

    `price_per_hour`: of an hour of the work itself; by default that of the contender's cheapest on-demand replica.
    """
    spent = [(pool, replayed.spent[pool.name]) for replayed in replays for pool in replayed.pools]
    prices = [pool.price_per_hour for pool, _ in spent]
    is_priced = None not in prices
    cost = sum(
        s.replica_seconds * (price if is_priced and price is not None else 1.0)
        for (_, s), price in zip(spent, prices, strict=True)
    )
    work = sum(replayed.trace.total_work_seconds for replayed in replays)
    late = np.concatenate([_lateness(replayed) for replayed in replays])
    sizes = np.concatenate([replayed.trace.work_seconds for replayed in replays])
    lost = sum(int(np.isnan(replayed.finished_at).sum()) for replayed in replays)

    def hours(name: str) -> float:
        return float(sum(getattr(s, name) for _, s in spent)) / HOUR

    return Measures(
        contender=contender,
        cost=float(cost) / HOUR,
        cost_unit="$" if is_priced else "replica-hours",
        cost_over_work=float(cost) / (work * (price_per_hour or _price_of_work(replays, is_priced=is_priced)))
        if work
        else 0.0,
        on_time_jobs=float((late <= 0).mean()) if len(late) else 1.0,
        on_time_work=float(sizes[late <= 0].sum() / sizes.sum()) if len(late) else 1.0,
        lateness_p99_seconds=float(np.quantile(np.maximum(late, 0.0), 0.99)) if len(late) else 0.0,
        jobs=len(late),
        lost_jobs=lost,
        work_hours=work / HOUR,
        replica_hours=hours("replica_seconds"),
        starts=sum(s.starts for _, s in spent),
        preemptions=sum(s.preemptions for _, s in spent),
        requeued_jobs=sum(s.requeued for _, s in spent),
        cold_hours=hours("cold_seconds"),
        idle_hours=hours("idle_seconds"),
        swap_hours=hours("swap_seconds"),
        preempted_hours=hours("lost_seconds"),
        decisions=sum(replayed.decisions for replayed in replays),
    )


def pareto(measures: Sequence[Measures]) -> list[Measures]:
    """Those that no other beats in both cost and share on time, the cheapest first."""
    front: list[Measures] = []
    for candidate in sorted(measures, key=lambda m: (m.cost, -m.on_time_jobs)):
        if not front or candidate.on_time_jobs > front[-1].on_time_jobs:
            front.append(candidate)
    return front


def _lateness(replayed: Replayed) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Seconds past the deadline; negative: early."""
    finished = np.where(np.isnan(replayed.finished_at), replayed.ended_at, replayed.finished_at)
    late = finished - replayed.trace.due_at
    # Jobs without a deadline are on time whenever they end, but not if they never do.
    return np.where(np.isnan(replayed.finished_at), np.maximum(late, 1e-9), late)


def _price_of_work(replays: Sequence[Replayed], *, is_priced: bool) -> float:
    """Of one hour of work, at speed 1."""
    pools = [pool for replayed in replays for pool in replayed.pools]
    if not is_priced:
        return min(1 / pool.speed for pool in pools)
    firm = [pool for pool in pools if pool.capacity == "on_demand"] or pools
    return min((pool.price_per_hour or 0.0) / pool.speed for pool in firm) or 1.0
