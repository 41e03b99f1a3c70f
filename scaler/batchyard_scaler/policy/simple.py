"""How many consumers a pool should have. Pure: decides on what it is told, and never asks or acts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

SECONDS_PER_CONSUMER = 20.0
"""Backlog that is worth one more consumer: loading a model takes seconds, so less is served faster without."""


class QueueBacklog(msgspec.Struct, frozen=True, kw_only=True):
    """The unfinished work of one queue that the pool serves, paused and held jobs left out."""

    name: str
    jobs: int
    seconds: float | None
    """Of one consumer's time; None while the model's speed is unknown."""


class PoolState(msgspec.Struct, frozen=True, kw_only=True):
    """What the pool looks like at one moment."""

    minimum: int
    maximum: int
    idle_seconds: float
    live: int
    """Replicas starting or ready; those that drain do not count."""
    idle_for_seconds: float
    """Since the pool last had work, or more than it needed."""
    never_loaded: Sequence[str] = ()
    """Versions that no consumer has loaded yet: their schema and speed are unknown."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    replicas: int
    reason: str
    """For people, completing "N consumers: …"."""


def decide(pool: PoolState, queues: Sequence[QueueBacklog]) -> Decision:
    """The number of consumers wanted now. More at once; fewer only after `idle_seconds` of not needing them."""
    needed, reason = _needed(pool, queues)
    if needed >= pool.live:
        return Decision(replicas=needed, reason=reason)
    if pool.idle_for_seconds >= pool.idle_seconds:
        return Decision(replicas=needed, reason=f"{reason}, for {pool.idle_seconds:g} s")
    left = pool.idle_seconds - pool.idle_for_seconds
    return Decision(replicas=pool.live, reason=f"{reason}; the surplus leaves in {max(1, round(left))} s")


def needed_now(pool: PoolState, queues: Sequence[QueueBacklog]) -> int:
    """What the work asks for at this moment, without regard to those who are there."""
    return _needed(pool, queues)[0]


def _needed(pool: PoolState, queues: Sequence[QueueBacklog]) -> tuple[int, str]:
    busy = [queue for queue in queues if queue.jobs]
    jobs = sum(queue.jobs for queue in busy)
    if not jobs:
        if pool.never_loaded and pool.minimum < 1:
            return 1, f"{', '.join(pool.never_loaded)} to be loaded for the first time"
        return pool.minimum, "no work" if pool.minimum == 0 else f"no work, and min is {pool.minimum}"
    known = [queue.seconds for queue in busy if queue.seconds is not None]
    seconds = sum(known)
    wanted = max(1, math.ceil(seconds / SECONDS_PER_CONSUMER - 0.5))
    replicas = min(pool.maximum, max(pool.minimum, wanted))
    about = f"{seconds:,.0f} s of one consumer's time" if len(known) == len(busy) else "speed not known yet"
    limit = f", max is {pool.maximum}" if wanted > pool.maximum else ""
    return replicas, f"{jobs:,} jobs, {about}{limit}"
