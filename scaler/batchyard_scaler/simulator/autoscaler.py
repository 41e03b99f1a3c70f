"""What stands between a policy's number and the replicas."""

from __future__ import annotations

import math
from typing import Protocol

from batchyard_scaler.policy.records import Decision

SYNC_SECONDS = 15.0
"""How often the HorizontalPodAutoscaler looks, and others here do."""


class Reading(Decision, frozen=True, kw_only=True):
    """A peer's answer: what it measures over its target, which an autoscaler turns into replicas."""

    value: float


class Autoscaler(Protocol):
    """Sizes one pool by the latest decision. Remembers what it did."""

    def look(self, now: float, decision: Decision, *, current: int) -> int:
        """How many replicas there should be from now on; `current`: those asked for so far."""

    def next_look(self, now: float, *, current: int) -> float:
        """When it looks next."""


class Direct:
    """Carries out decisions as they are, every so often: local pools, and peers that scale by themselves."""

    def __init__(self, *, every_seconds: float = SYNC_SECONDS) -> None:
        self._every_seconds = every_seconds

    def look(self, now: float, decision: Decision, *, current: int) -> int:
        return decision.replicas

    def next_look(self, now: float, *, current: int) -> float:
        return next_multiple(now, self._every_seconds)


def next_multiple(now: float, every: float) -> float:
    """The first moment after `now` on a grid that begins at 0."""
    return (math.floor(now / every + 1e-9) + 1) * every
