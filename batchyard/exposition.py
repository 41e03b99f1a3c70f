"""Prometheus's text format, written straight from values where there are thousands of them.

`prometheus_client` makes an object of each sample at a scrape and checks its names, which takes longer than all that
is read from the database.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

from batchyard.logs import log_event

_log = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `render` returns."""

Snapshot = list[tuple[str, str, str, list[tuple[str, str, float]]]]
"""Per metric: name, kind, what it is about, and its samples as (name, labels as they are shown, value). Survives
JSON."""


class Family(Metric):
    """A metric that is written as its values come in. A collector yields it like any other."""

    def __init__(self, name: str, about: str, *, kind: str = "gauge", labels: Sequence[str] = ()) -> None:
        super().__init__(name, about, kind)
        self._form = name + (f"{{{','.join(f'{label}=%s' for label in sorted(labels))}}} " if labels else " ")
        self._order = sorted(range(len(labels)), key=labels.__getitem__)
        about = about.replace("\\", r"\\").replace("\n", r"\n")
        self.lines = [f"# HELP {name} {about}\n# TYPE {name} {kind}\n"]

    def add(self, values: tuple[str, ...], value: float) -> None:
        """One sample, with a value for each label."""
        shown = tuple(_quoted(values[place]) for place in self._order)
        self.lines.append(f"{self._form % shown}{float(value)!r}\n")


def render(registry: CollectorRegistry) -> bytes:
    """The text that a scrape answers."""
    counted = CollectorRegistry()
    written: list[str] = []
    others: list[Metric] = []
    for metric in registry.collect():
        if isinstance(metric, Family):
            written += metric.lines
        else:
            others.append(metric)
    counted.register(_Collected(others))
    return generate_latest(counted) + "".join(written).encode()


def snapshot(registry: CollectorRegistry) -> Snapshot:
    """All that a registry counts, as plain values, for `reemit`."""
    return [
        (
            f"{metric.name}_total" if metric.type == "counter" else metric.name,
            metric.type,
            metric.documentation,
            [(one.name, ",".join(f"{key}={_quoted(one.labels[key])}" for key in one.labels), one.value)
             for one in metric.samples],
        )
        for metric in registry.collect()
    ]  # fmt: skip


def reemit(sources: Iterable[tuple[Mapping[str, str], Iterable[Sequence[Any]]]]) -> Iterator[Family]:
    """Merge snapshots of several processes into metrics, each process's samples under labels of its own.

    What does not read as a snapshot is left out: a scrape never fails over what one consumer reported.
    """
    merged: dict[str, Family] = {}
    for labels, metrics in sources:
        ours = ",".join(f"{key}={_quoted(value)}" for key, value in labels.items())
        try:
            for name, kind, about, samples in metrics:
                lines = [_line(sample, own, ours, value) for sample, own, value in samples]
                family = merged.get(name) or merged.setdefault(name, Family(name, about, kind=kind))
                family.lines += lines
        except (TypeError, ValueError, AttributeError):
            log_event(_log, "consumer_samples_unreadable", level=logging.WARNING, source=dict(labels))
    yield from merged.values()


class _Collected:
    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Sequence[Metric]:
        return self._metrics


def _line(sample: str, own: str, ours: str, value: float) -> str:
    if type(own) is not str:
        raise TypeError("labels come as they are shown")
    return f"{sample}{{{own}{',' if own else ''}{ours}}} {float(value)!r}\n"


def _quoted(value: str) -> str:
    if "\\" in value or '"' in value or "\n" in value:
        value = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{value}"'
