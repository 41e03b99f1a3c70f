"""KEDA and the autoscaler of Kubernetes, for one ScaledObject as it is rendered: who turns a metric into replicas.

Written from KEDA's contract and Kubernetes' documentation alone: nothing of batchyard is imported here.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tests.services.keda import FACTOR
from tests.services.keda.sources import Source, TriggerFailed

SYNC_SECONDS = 15.0
DEFAULT_TOLERANCE = 0.1


class Scaled(Protocol):
    """What has replicas."""

    @property
    def replicas(self) -> int: ...

    def scale(self, replicas: int, *, by: str) -> None: ...


class Hpa:
    """https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/ for one external metric with
    an average value as its target, without a window of stabilisation."""

    def __init__(self, spec: Mapping[str, Any], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._minimum: int = max(1, spec["minReplicaCount"])
        self._maximum: int = spec["maxReplicaCount"]
        self._behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        assert {rules["stabilizationWindowSeconds"] for rules in self._behavior.values()} == {0}
        self._clock = clock
        self._changes: list[tuple[float, int]] = []
        """When, and by how many replicas."""

    def desired(self, *, replicas: int, metric: float, target: float) -> int:
        """What it makes of a metric; 0 replicas are not its to change."""
        up, down = (self._behavior[way].get("tolerance", DEFAULT_TOLERANCE) for way in ("scaleUp", "scaleDown"))
        if 1.0 - down <= metric / (target * replicas) <= 1.0 + up:
            return replicas
        wanted = min(self._maximum, max(self._minimum, math.ceil(metric / target)))
        if wanted > replicas:
            wanted = min(wanted, max(self._limit(policy, replicas, 1) for policy in self._policies("scaleUp")))
        elif wanted < replicas:
            wanted = max(wanted, min(self._limit(policy, replicas, -1) for policy in self._policies("scaleDown")))
        self._changes.append((self._clock(), wanted - replicas))
        return wanted

    def _policies(self, direction: str) -> list[Mapping[str, Any]]:
        assert self._behavior[direction].get("selectPolicy", "Max") == "Max"
        return list(self._behavior[direction]["policies"])

    def _limit(self, policy: Mapping[str, Any], replicas: int, sign: int) -> int:
        """As far as the policy lets it go, counted from where its period began: changes of both ways are undone."""
        since = self._clock() - policy["periodSeconds"] / FACTOR
        begun = replicas - sum(change for at, change in self._changes if at > since)
        if policy["type"] == "Pods":
            return int(begun + sign * policy["value"])
        return math.ceil(begun * (1 + policy["value"] / 100)) if sign > 0 else int(begun * (1 - policy["value"] / 100))


class Autoscaler:
    """Both loops of KEDA over one trigger. `run` is the body of its thread, `push` that of another for a stream."""

    def __init__(self, spec: Mapping[str, Any], source: Source, scaled: Scaled) -> None:
        self._spec = spec
        self._source = source
        self._scaled = scaled
        self._hpa = Hpa(spec)
        self._stop = threading.Event()
        self._failures = 0
        """In a row, of the metric."""
        self._active_at = -math.inf
        self._acting = threading.Lock()
        self.may_look = threading.Event()
        """Cleared by a test: KEDA's next look is far off."""
        self.may_look.set()
        self.failed_looks = 0
        self.failed_syncs = 0
        self.syncs = 0
        self.looks = 0

    def run(self) -> None:
        """Look every `pollingInterval`, and let the autoscaler look every 15 s; all shortened."""
        next_look = next_sync = time.monotonic()
        while not self._stop.wait(max(0.0, min(next_look, next_sync) - time.monotonic())):
            now = time.monotonic()
            if now >= next_look:
                next_look = now + self._spec["pollingInterval"] / FACTOR
                if self.may_look.is_set():
                    self.look()
            if now >= next_sync:
                next_sync = now + SYNC_SECONDS / FACTOR
                self.sync()

    def stop(self) -> None:
        self._stop.set()

    def push(self, activations: Callable[[], Any]) -> None:
        """A stream's true acts at once, its false never; a stream that breaks is opened again."""
        while not self._stop.wait(2.0 / FACTOR):
            for is_active in activations():
                if is_active:
                    with self._acting:
                        self._activate(by="stream")

    def look(self) -> None:
        """KEDA's own loop: between nothing and the first replica."""
        try:
            is_active, is_error = self._source.look()[1], False
        except TriggerFailed:
            is_active, is_error = False, True
            self.failed_looks += 1
        with self._acting:
            self.looks += 1
            self._act(is_active=is_active, is_error=is_error)

    def _act(self, *, is_active: bool, is_error: bool) -> None:
        replicas, minimum = self._scaled.replicas, self._spec["minReplicaCount"]
        fallback = self._spec.get("fallback", {})
        if is_active:
            self._activate(by="look")
        elif is_error and fallback.get("replicas"):
            if fallback.get("behavior") != "currentReplicas":
                self._scaled.scale(fallback["replicas"], by="fallback")
        elif replicas > 0 and minimum == 0:
            if time.monotonic() - self._active_at >= self._spec["cooldownPeriod"] / FACTOR:
                self._scaled.scale(0, by="cool-down")
        elif replicas < minimum:
            self._scaled.scale(minimum, by="minimum")

    def _activate(self, *, by: str) -> None:
        self._active_at = time.monotonic()
        if self._scaled.replicas == 0:
            self._scaled.scale(max(1, self._spec["minReplicaCount"]), by=by)

    def sync(self) -> None:
        """One look of the autoscaler, which asks KEDA for the metric. An error leaves everything as it is."""
        replicas = self._scaled.replicas
        if replicas == 0:
            return
        metric = self._metric(replicas)
        with self._acting:
            self.syncs += 1
            if metric is None:
                self.failed_syncs += 1
            elif self._scaled.replicas == replicas:
                wanted = self._hpa.desired(replicas=replicas, metric=metric[0], target=metric[1])
                if wanted != replicas:
                    self._scaled.scale(wanted, by="autoscaler")

    def _metric(self, replicas: int) -> tuple[float, float] | None:
        """With the target; after enough failures what the fallback makes of them. Without a target no fallback."""
        try:
            target = self._source.target()
        except TriggerFailed:
            return None
        try:
            value, _ = self._source.look()
        except TriggerFailed:
            fallback = self._spec["fallback"]
            self._failures += 1
            if self._failures < fallback["failureThreshold"]:
                return None
            kept = replicas if fallback["behavior"] == "currentReplicas" else fallback["replicas"]
            return kept * target, target
        self._failures = 0
        return value, target
