"""A comparison for people, as Markdown, and for programs, as JSON."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from batchyard_scaler.simulator.comparing import Comparison
from batchyard_scaler.simulator.measures import Measures

HEADINGS = (
    "policy",
    "cost",
    "over the bound",
    "cost ÷ work",
    "on time, jobs",
    "on time, work",
    "p99 lateness",
    "starts",
    "cold h",
    "idle h",
    "swap h",
    "preempted h",
    "lost jobs",
    "best",
)


def markdown(comparison: Comparison) -> str:
    """A table, a row a contender. `best`: no other is both cheaper and more often on time."""
    title = (
        f"{comparison.trace}: {comparison.jobs:,} job{'s' * (comparison.jobs != 1)} in {comparison.days:.2f} days, "
        f"a mean demand of {comparison.mean_demand:.1f} replicas"
    )
    assumed = "; ".join(f"{name} {value}" for name, value in comparison.assumptions.items())
    lines = [f"# {title}", "", f"{assumed}.", ""] if assumed else [f"# {title}", ""]
    if comparison.bound_cost is not None:
        unit = comparison.measures[0].cost_unit if comparison.measures else "$"
        lines += [f"Clairvoyant bound: {_cost(comparison.bound_cost, unit)}.", ""]
    if comparison.bound_note:
        lines += [comparison.bound_note, ""]
    lines += [_row(HEADINGS), _row(["---"] * len(HEADINGS))]
    lines += [_row(_cells(comparison, found)) for found in comparison.measures]
    return "\n".join(lines) + "\n"


def as_json(comparison: Comparison) -> bytes:
    """The comparison as a document, with the names on the Pareto front."""
    document = msgspec.to_builtins(comparison) | {"front": comparison.front}
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _cells(comparison: Comparison, found: Measures) -> list[str]:
    over = comparison.over_bound(found)
    return [
        found.contender,
        _cost(found.cost, found.cost_unit),
        "–" if over is None else f"{over:.3f}",
        f"{found.cost_over_work:.3f}",
        f"{found.on_time_jobs:.2%}",
        f"{found.on_time_work:.2%}",
        f"{found.lateness_p99_seconds:,.0f} s",
        f"{found.starts:,}",
        *(f"{hours:,.1f}" for hours in (found.cold_hours, found.idle_hours, found.swap_hours, found.preempted_hours)),
        f"{found.lost_jobs:,}",
        "best" if found.contender in comparison.front else "",
    ]


def _cost(cost: float, unit: str) -> str:
    return f"${cost:,.2f}" if unit == "$" else f"{cost:,.2f} {unit}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
