"""Pictures of a comparison: replicas against backlog over time, and cost against the share on time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from batchyard_scaler.simulator.comparing import Comparison
from batchyard_scaler.simulator.engine import Moment
from batchyard_scaler.simulator.trace import Floats

HOUR = 3600.0
POINTS = 4_000
"""Of one line at most: a picture has no more columns."""


def plot_replicas(path: Path, moments: Mapping[str, Sequence[Moment]]) -> None:
    """One pair of axes a contender, below one another: replicas by pool, and the backlog in hours of a replica."""
    figure = Figure(figsize=(12, 2.6 * len(moments) + 0.6), layout="constrained")
    axes = figure.subplots(len(moments), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, seen) in zip(axes, moments.items(), strict=True):
        shown = seen[:: max(1, len(seen) // POINTS)]
        hours = _column([moment.at_seconds for moment in shown]) / HOUR
        backlog = axis.twinx()
        backlog.fill_between(hours, _column([m.backlog_seconds for m in shown]) / HOUR, color="0.85", step="post")
        backlog.set_ylabel("backlog, replica-hours", color="0.5")
        backlog.set_ylim(bottom=0)
        axis.set_zorder(backlog.get_zorder() + 1)
        axis.patch.set_visible(False)
        for pool in shown[0].replicas if shown else ():
            axis.step(hours, _column([m.replicas[pool] for m in shown]), where="post", label=pool, linewidth=1)
        axis.set_title(name, loc="left")
        axis.set_ylabel("replicas")
        axis.set_ylim(bottom=0)
        axis.legend(loc="upper right")
    axes[-1].set_xlabel("hours since the beginning")
    _save(figure, path)


def plot_costs(path: Path, comparison: Comparison) -> None:
    """A point a contender, those that no other beats joined, and a line at the bound."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axis = figure.subplots()
    for found in comparison.measures:
        axis.scatter(found.cost, found.on_time_jobs * 100, label=found.contender)
    front = [found for name in comparison.front for found in comparison.measures if found.contender == name]
    axis.plot([found.cost for found in front], [found.on_time_jobs * 100 for found in front], color="0.6", zorder=0)
    if comparison.bound_cost is not None:
        axis.axvline(comparison.bound_cost, color="0.3", linestyle="--", label="clairvoyant bound")
    axis.legend()
    unit = comparison.measures[0].cost_unit
    axis.set_xlabel("cost, dollars" if unit == "$" else f"cost, {unit}")
    axis.set_ylabel("jobs on time, %")
    axis.set_ylim(top=min(101.0, axis.get_ylim()[1]))
    axis.set_title(comparison.trace, loc="left")
    _save(figure, path)


def _column(values: Sequence[float]) -> Floats:
    return np.asarray(values, dtype=np.float64)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)
