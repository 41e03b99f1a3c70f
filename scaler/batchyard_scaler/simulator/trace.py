"""What is replayed: jobs in the order of their arrival."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Jobs, ascending by arrival. All arrays have one entry a job; times are seconds since the trace's beginning."""

    name: str
    arrive_at: Floats
    work_seconds: Floats
    """Of one replica of speed 1."""
    due_at: Floats
    """`inf`: no deadline."""
    model: NDArray[np.int64]
    """Index into `models`."""
    is_tolerant: NDArray[np.bool_]
    models: tuple[str, ...]
    seconds: float
    """Length. Replicas are paid until then at the least."""
    begins_at_seconds: float = 0.0
    """Unix time of the beginning: the hour of the day matters to forecasts."""

    def __len__(self) -> int:
        return len(self.arrive_at)

    @property
    def total_work_seconds(self) -> float:
        return float(self.work_seconds.sum())

    @property
    def mean_demand(self) -> float:
        """Replicas of speed 1 that the work alone keeps busy."""
        return self.total_work_seconds / self.seconds

    def expected_seconds(self) -> Floats:
        """What is known of each job before it has run: the mean of its model."""
        count = np.bincount(self.model, minlength=len(self.models))
        total = np.bincount(self.model, weights=self.work_seconds, minlength=len(self.models))
        means: Floats = total / np.maximum(count, 1)
        return means[self.model]

    def of_models(self, wanted: Sequence[int]) -> Trace:
        """The jobs of some models alone."""
        keep = np.isin(self.model, wanted)
        place = np.zeros(len(self.models), dtype=np.int64)
        place[list(wanted)] = np.arange(len(wanted))
        return Trace(
            name=self.name,
            arrive_at=self.arrive_at[keep],
            work_seconds=self.work_seconds[keep],
            due_at=self.due_at[keep],
            model=place[self.model[keep]],
            is_tolerant=self.is_tolerant[keep],
            models=tuple(self.models[index] for index in wanted),
            seconds=self.seconds,
            begins_at_seconds=self.begins_at_seconds,
        )
