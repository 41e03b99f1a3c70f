"""KEDA's loop from 0 to 1 and back, and the HorizontalPodAutoscaler's from 1 to N, by their own arithmetic.

From KEDA v2.20's scale executor and Kubernetes 1.35's podautoscaler: the ratio's tolerance, stabilisation over
recommendations, policies over the changes of their period, and at last the bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from batchyard_scaler.policy.records import Decision
from batchyard_scaler.simulator.autoscaler import SYNC_SECONDS, Reading, next_multiple


@dataclass(frozen=True, kw_only=True)
class StepPolicy:
    """How far one period may take the replicas."""

    kind: Literal["Pods", "Percent"]
    value: int
    period_seconds: float


@dataclass(frozen=True, kw_only=True)
class Direction:
    """Behaviour of one direction. With several policies the one that allows the most counts."""

    tolerance: float = 0.1
    stabilization_seconds: float
    policies: Sequence[StepPolicy]


UP = Direction(
    stabilization_seconds=0.0,
    policies=(
        StepPolicy(kind="Percent", value=100, period_seconds=15.0),
        StepPolicy(kind="Pods", value=4, period_seconds=15.0),
    ),
)
DOWN = Direction(stabilization_seconds=300.0, policies=(StepPolicy(kind="Percent", value=100, period_seconds=15.0),))


@dataclass(frozen=True, kw_only=True)
class HpaSettings:
    """A ScaledObject. The defaults are those of KEDA and Kubernetes."""

    minimum: int = 0
    maximum: int = 100
    polling_seconds: float = 30.0
    cooldown_seconds: float = 300.0
    up: Direction = UP
    down: Direction = DOWN

    @classmethod
    def from_scaled_object(cls, scaled_object: Mapping[str, Any]) -> HpaSettings:
        """As a manifest says."""
        spec = scaled_object["spec"]
        behavior = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {}).get("behavior", {})
        return cls(
            minimum=spec.get("minReplicaCount", 0),
            maximum=spec.get("maxReplicaCount", 100),
            polling_seconds=spec.get("pollingInterval", 30.0),
            cooldown_seconds=spec.get("cooldownPeriod", 300.0),
            up=_direction(behavior.get("scaleUp", {}), UP),
            down=_direction(behavior.get("scaleDown", {}), DOWN),
        )


def _direction(given: Mapping[str, Any], default: Direction) -> Direction:
    policies = [
        StepPolicy(kind=policy["type"], value=policy["value"], period_seconds=policy["periodSeconds"])
        for policy in given.get("policies", ())
    ]
    return Direction(
        tolerance=given.get("tolerance", default.tolerance),
        stabilization_seconds=given.get("stabilizationWindowSeconds", default.stabilization_seconds),
        policies=policies or default.policies,
    )


class Hpa:
    """An `Autoscaler`: one ScaledObject at work. A value is a metric over its target, in replicas."""

    def __init__(self, settings: HpaSettings) -> None:
        self._settings = settings
        self._longest_period = max(p.period_seconds for p in (*settings.up.policies, *settings.down.policies))
        self._last_active = -math.inf
        self._last_value = 0.0
        self._recommended: list[tuple[float, int]] = []
        self._changes: list[tuple[float, int]] = []
        """When the HorizontalPodAutoscaler changed the replicas, and by how many; as far back as policies look."""

    def look(self, now: float, decision: Decision, *, current: int) -> int:
        value = decision.value if isinstance(decision, Reading) else float(decision.replicas)
        self._last_value = value
        settings = self._settings
        if value > 0:
            self._last_active = now
            if current == 0:
                return min(settings.maximum, max(1, settings.minimum))
        elif settings.minimum == 0 and (current == 0 or now >= self._last_active + settings.cooldown_seconds):
            return 0
        if current < settings.minimum:
            return settings.minimum
        return self._sync(now, value, current) if _is_multiple(now, SYNC_SECONDS) else current

    def next_look(self, now: float, *, current: int) -> float:
        """The polls between two syncs matter near zero alone, and are left out elsewhere."""
        if current <= 1 or self._last_value <= 0:
            return min(next_multiple(now, self._settings.polling_seconds), next_multiple(now, SYNC_SECONDS))
        return next_multiple(now, SYNC_SECONDS)

    def _sync(self, now: float, value: float, current: int) -> int:
        settings = self._settings
        ratio = value / current
        is_within = 1 - settings.down.tolerance <= ratio <= 1 + settings.up.tolerance
        desired = current if is_within else math.ceil(value - 1e-9)
        desired = min(settings.maximum, max(settings.minimum, 1, desired))
        desired = self._stabilised(now, desired, current)
        desired = self._limited(now, desired, current)
        if desired != current:
            self._changes = [entry for entry in self._changes if entry[0] > now - self._longest_period]
            self._changes.append((now, desired - current))
        return desired

    def _stabilised(self, now: float, desired: int, current: int) -> int:
        """No higher than all recommendations of the one window, no lower than all of the other."""
        up, down = self._settings.up.stabilization_seconds, self._settings.down.stabilization_seconds
        self._recommended = [entry for entry in self._recommended if entry[0] > now - max(up, down)]
        least = min([desired, *(number for at, number in self._recommended if at > now - up)])
        most = max([desired, *(number for at, number in self._recommended if at > now - down)])
        self._recommended.append((now, desired))
        return min(max(current, least), most)

    def _limited(self, now: float, desired: int, current: int) -> int:
        if desired > current:
            limits = [self._limit(policy, now, current, sign=1) for policy in self._settings.up.policies]
            return min(desired, max(current, *limits))
        if desired < current:
            limits = [self._limit(policy, now, current, sign=-1) for policy in self._settings.down.policies]
            return max(desired, min(current, *limits))
        return desired

    def _limit(self, policy: StepPolicy, now: float, current: int, *, sign: int) -> int:
        start = current - sum(change for at, change in self._changes if at > now - policy.period_seconds)
        if policy.kind == "Pods":
            return start + sign * policy.value
        scaled = start * (1 + sign * policy.value / 100)
        return math.ceil(scaled - 1e-9) if sign > 0 else math.floor(scaled + 1e-9)


def _is_multiple(now: float, every: float) -> bool:
    return abs(now / every - round(now / every)) < 1e-6
