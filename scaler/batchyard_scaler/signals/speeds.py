"""How fast each class of hardware serves a model, as its consumers measured it with the batches they really run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from batchyard.pool_figures import quantile
from batchyard.settings import PoolSettings
from batchyard.store.base import ConsumerInfo, ModelVersion

KEPT = 20
"""Consumers whose last word counts, of a model and class."""
SLOW_SHARE = 0.8
"""Of consumers, as fast or faster than the speed that is reckoned with."""


class Speeds:
    """Learns from heartbeats. Owned by one thread."""

    def __init__(
        self, pools: Iterable[PoolSettings], *, known: Mapping[str, Mapping[str, float]] | None = None
    ) -> None:
        self._pools = {pool.name: pool for pool in pools}
        self._told: dict[str, dict[str, float]] = {key: dict(told) for key, told in (known or {}).items()}
        """`model@version class` → consumer → seconds per unit of cost, as it told last; older ones first."""
        self._classes: dict[str, str] = {pool.name: pool.hardware for pool in self._pools.values()}
        """Pool → class of hardware: as configured, else the kind of device that its consumers told."""

    def known(self) -> dict[str, dict[str, float]]:
        """For the next scaler: JSON-like."""
        return {key: dict(told) for key, told in self._told.items()}

    def see(self, consumers: Iterable[ConsumerInfo]) -> None:
        """Take in what consumers told with their last heartbeat."""
        for info in consumers:
            pool = self._pools.get(info.pool)
            if pool is None:
                continue
            kind = self._classes[info.pool] = pool.hardware or info.device.partition(":")[0]
            for model, seconds in _told(info.stats).items():
                of_class = self._told.setdefault(f"{model} {kind}", {})
                of_class[f"{info.id:x}"] = seconds
                while len(of_class) > KEPT:
                    del of_class[next(iter(of_class))]

    def seconds_per_unit(self, version: ModelVersion, pools: Iterable[PoolSettings]) -> float | None:
        """At the speed 1, by the slowest of the pools that serve it; None where nobody has measured it."""
        measured = [
            quantile(list(told.values()), SLOW_SHARE) * pool.speed
            for pool in pools
            if (told := self._told.get(f"{version.name} {self._classes.get(pool.name, '')}"))
        ]
        return max(measured, default=version.seconds_per_unit)


def _told(stats: Mapping[str, Any]) -> dict[str, float]:
    told = stats.get("seconds_per_unit")
    if not isinstance(told, dict):
        return {}
    return {model: float(value) for model, value in told.items() if isinstance(value, int | float) and value > 0}
