"""What flags and the configuration ask to be replayed: the trace, the pools, and what the figures rest on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from batchyard.errors import InvalidRequest
from batchyard.settings import PoolSettings
from batchyard.spot_trace import Spot, read_spot
from batchyard_scaler.policy.records import Pool, Zone
from batchyard_scaler.simulator.generators import GENERATORS, from_rates
from batchyard_scaler.simulator.reading import Rates, read_jobs
from batchyard_scaler.simulator.trace import Trace

# --- what is replayed -------------------------------------------------------------------------------------------------


def trace_of(
    text: str,
    *,
    columns: Mapping[str, str],
    model: str | None,
    demand: float | None,
    job_seconds: float | None,
    deadlines: Sequence[float] | None,
    seed: int,
) -> Trace:
    if text in GENERATORS:
        return _scaled(GENERATORS[text](seed=seed, **({"deadlines": deadlines} if deadlines else {})), demand)
    path = Path(text)
    if not path.is_file():
        raise click.BadParameter(f"{text} is neither a file nor one of {', '.join(GENERATORS)}.", param_hint="TRACE")
    read = read_jobs(path, named=columns)
    given = deadlines or (900.0, 14_400.0)
    if isinstance(read, Rates):
        name = model or next(iter(read.by_model))
        if name not in read.by_model:
            raise InvalidRequest(f"{path.name} has no model {name}; it has {', '.join(read.by_model)}.")
        return from_rates(
            read.by_model[name],
            name=name,
            step_seconds=read.step_seconds,
            job_seconds=job_seconds or 30.0,
            deadlines=given,
            mean_demand=demand,
            seed=seed,
        )
    if np.isinf(read.due_at).all():
        drawn = np.random.default_rng(seed).choice(np.asarray(given), len(read))
        read = replace(read, due_at=read.arrive_at + drawn)
    if np.isnan(read.work_seconds).all():
        if job_seconds is None:
            click.echo(
                f"Note: {path.name} has no column of the jobs' work, so each takes 30 s: --job-seconds says otherwise, "
                "and --column work=HEADING names a column.",
                err=True,
            )
        read = replace(read, work_seconds=np.full(len(read), job_seconds or 30.0))
    return _scaled(read, demand)


def spot_of(paths: Sequence[Path]) -> Spot:
    """A zone a file, by the file's name."""
    spot = {zone.zone: zone for zone in map(read_spot, paths)}
    if len(spot) < len(paths):
        raise click.UsageError("Files of --spot are zones by their names, and two of them have the same name.")
    return spot


def _scaled(trace: Trace, demand: float | None) -> Trace:
    """With the work of each job multiplied, so that it keeps so many replicas busy in the mean."""
    if demand is None:
        return trace
    return replace(trace, work_seconds=trace.work_seconds * (demand / trace.mean_demand))


# --- pools ------------------------------------------------------------------------------------------------------------


def pools_of(
    trace: Trace,
    *,
    apart: bool,
    cold_start: float,
    swap: float,
    price: float,
    spot_price: float,
    maximum: int,
    zones: Sequence[str],
) -> list[Pool]:
    if apart and zones:
        raise click.UsageError("--apart gives each model an on-demand pool of its own; it goes without --spot.")
    groups = [[name] for name in trace.models] if apart else [list(trace.models)]
    pools = [
        Pool(
            name=models[0] if apart else "on-demand",
            capacity="on_demand",
            models=frozenset(models),
            minimum=0,
            maximum=maximum,
            price_per_hour=price,
            cold_start_seconds=cold_start,
            restart_cost_seconds=cold_start,
            swap_seconds=swap,
        )
        for models in groups
    ]
    if zones:
        pools.append(
            Pool(
                name="spot",
                capacity="spot",
                models=frozenset(trace.models),
                minimum=0,
                maximum=maximum,
                price_per_hour=spot_price,
                cold_start_seconds=cold_start,
                restart_cost_seconds=cold_start,
                swap_seconds=swap,
                zones=[Zone(name=zone) for zone in zones],
            )
        )
    return pools


def configured_pools(
    settings: Sequence[PoolSettings], trace: Trace, *, cold_start: float, swap: float, zones: Sequence[str]
) -> list[Pool]:
    """The pools of the configuration; those that name no model of the trace serve all of its models."""
    found = []
    for pool in settings:
        named = {name for name in trace.models if name in pool.models or name.partition("@")[0] in pool.models}
        found.append(
            Pool(
                name=pool.name,
                capacity=pool.capacity,
                models=frozenset(named or trace.models),
                minimum=pool.min,
                maximum=pool.max,
                price_per_hour=pool.price_per_hour,
                speed=pool.speed,
                cold_start_seconds=cold_start,
                restart_cost_seconds=cold_start,
                swap_seconds=swap,
                zones=[Zone(name=zone) for zone in zones] if pool.capacity == "spot" else [],
            )
        )
    if not found:
        raise InvalidRequest("The configuration has no pools; give it a section [pools.NAME], or leave out --pools.")
    served = frozenset().union(*(pool.models for pool in found if pool.capacity == "on_demand" or pool.maximum))
    if missing := set(trace.models) - served:
        raise InvalidRequest(f"No pool serves {', '.join(sorted(missing))}, which the trace has jobs of.")
    return found


def assumptions_of(trace: Trace, pools: Sequence[Pool], *, seed: int) -> dict[str, str]:
    spans = np.unique(np.round(trace.due_at - trace.arrive_at))
    shown = [f"{span:,.0f} s" for span in spans if math.isfinite(span)]
    deadlines = " and ".join(shown) if len(shown) <= 4 else f"{shown[0]} to {shown[-1]}"
    first = pools[0]
    priced = [pool for pool in pools if pool is first or pool.capacity == "spot"]
    return {
        "mean work of a job": f"{trace.work_seconds.mean():.1f} s",
        "deadlines": deadlines or "none",
        "cold start": f"{first.cold_start_seconds:g} s",
        **({"swapping a model": f"{first.swap_seconds:g} s"} if first.swap_seconds else {}),
        **{
            f"price of {pool.name}": "not known" if pool.price_per_hour is None else f"${pool.price_per_hour:g} an hour"
            for pool in priced
        },
        "seed": str(seed),
    }
