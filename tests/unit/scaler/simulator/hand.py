"""Small traces and pools, written by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from batchyard.spot_trace import SpotTrace
from batchyard_scaler.policy.records import Pool, Zone
from batchyard_scaler.simulator.trace import Trace

COLD = 60.0


def trace_of(
    jobs: Sequence[tuple[float, float, float]],
    *,
    seconds: float = 1000.0,
    models: Sequence[int] | None = None,
    tolerant: Sequence[bool] | None = None,
) -> Trace:
    """Jobs as (arrival, work, deadline)."""
    arrive, work, due = np.array(jobs, dtype=float).T
    return Trace(
        name="by hand",
        arrive_at=arrive,
        work_seconds=work,
        due_at=due,
        model=np.array(models or [0] * len(jobs)),
        is_tolerant=np.array(tolerant or [True] * len(jobs)),
        models=("a@1", "b@1"),
        seconds=seconds,
    )


def pool_of(
    *,
    name: str = "pool",
    capacity: str = "on_demand",
    zones: Sequence[str] = (),
    speed: float = 1.0,
    price_per_hour: float | None = None,
    cold_start_seconds: float = COLD,
    swap_seconds: float = 0.0,
) -> Pool:
    return Pool(
        name=name,
        capacity="spot" if capacity == "spot" else "on_demand",
        models=frozenset({"a@1", "b@1"}),
        minimum=0,
        maximum=9,
        speed=speed,
        price_per_hour=price_per_hour,
        cold_start_seconds=cold_start_seconds,
        restart_cost_seconds=cold_start_seconds,
        swap_seconds=swap_seconds,
        zones=[Zone(name=zone) for zone in zones],
    )


def spot_of(*changes: tuple[float, int], seconds: float = 10_000.0) -> dict[str, SpotTrace]:
    """One zone, `z`, by what it gains and loses."""
    return {"z": SpotTrace(zone="z", changes=changes, seconds=seconds)}
