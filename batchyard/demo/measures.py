"""Figures of a run, from the Prometheus text that the API answers. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, kw_only=True)
class Batches:
    """What went through the forward passes of one model, over all consumers."""

    batches: int
    jobs: int
    useful_cost: float
    padding_cost: float
    forward_seconds: float

    @property
    def mean_jobs(self) -> float:
        return self.jobs / self.batches if self.batches else 0.0

    @property
    def padding(self) -> float:
        """Share of what was computed that was padding."""
        total = self.useful_cost + self.padding_cost
        return self.padding_cost / total if total else 0.0


def batches_of(metrics: str, *, model: str) -> Batches:
    """Of `model@version`."""

    def total(name: str, **labels: str) -> float:
        return sum_of(metrics, name, model=model, **labels)

    return Batches(
        batches=round(total("batchyard_batches_total")),
        jobs=round(total("batchyard_batch_size_jobs_sum")),
        useful_cost=total("batchyard_batch_cost_total", kind="useful"),
        padding_cost=total("batchyard_batch_cost_total", kind="padding"),
        forward_seconds=total("batchyard_forward_seconds_sum"),
    )


def sum_of(metrics: str, name: str, **labels: str) -> float:
    """The samples of that name that carry these labels, added up; 0 without any."""
    return sum(
        value for found, carried, value in _samples(metrics) if found == name and labels.items() <= carried.items()
    )


def _samples(metrics: str) -> list[tuple[str, Mapping[str, str], float]]:
    return [
        (match["name"], dict(_LABEL.findall(match["labels"] or "")), float(match["value"]))
        for match in _SAMPLE.finditer(metrics)
    ]
