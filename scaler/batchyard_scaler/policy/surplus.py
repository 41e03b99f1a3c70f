"""What happens to replicas that are not needed: an idle one is kept no longer than its restart costs (ski rental)."""

from __future__ import annotations

from typing import NamedTuple

from batchyard_scaler.policy.records import Pool

PATIENT_STARTS = 3.0
"""Where jobs can wait as many times as long as a start takes, the next ones wait for a start together: then no idle
replica pays, however short it is kept."""


class Surplus(NamedTuple):
    replicas: int
    """To have now."""
    leaves_in_seconds: float | None = None
    """Where a surplus is kept: for how long at most."""


def busy_of(pool: Pool) -> int:
    """How many of those that are ready work."""
    return sum(replica.is_busy for replica in pool.replicas if replica.state == "ready")


def keep_seconds(pool: Pool) -> float:
    """How long an idle replica is kept."""
    slack = pool.usual_slack_seconds
    if slack is not None and slack >= PATIENT_STARTS * pool.cold_start_seconds:
        return 0.0
    return pool.restart_cost_seconds


def surplus(pool: Pool, *, needed: int, hands_over: bool = False) -> Surplus:
    """How many of those that are there stay, of which `needed` are needed. Who works is not sent away, unless
    `hands_over`: its work is done cheaper elsewhere, once it has finished what it holds."""
    live = pool.count("ready", "starting")
    if hands_over and not pool.idle_for_seconds:
        return Surplus(needed)
    needed = max(needed, busy_of(pool))
    left = keep_seconds(pool) - pool.idle_for_seconds
    return Surplus(live, left) if needed < live and left > 0 else Surplus(needed)
