"""What a benchmark measured, and how it is printed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One round of one row."""

    jobs: int
    seconds: float
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    """By role of process."""
    durability: str = ""
    extra: dict[str, float] = field(default_factory=dict)
    """Further figures, such as p99_ms."""

    @property
    def rate(self) -> float:
        return self.jobs / self.seconds


@dataclass(frozen=True, kw_only=True)
class Row:
    """Several rounds of one subject; the median round speaks for it."""

    name: str
    rounds: Sequence[Measurement]

    @property
    def rate(self) -> float:
        return statistics.median(m.rate for m in self.rounds)

    def lines(self, *, baseline: Row | None = None) -> list[str]:
        """The row for people: rate with its range, ratio to a baseline, CPU by role, durability."""
        rates = sorted(m.rate for m in self.rounds)
        ratio = f"  {self.rate / baseline.rate:6.1f} x {baseline.name}" if baseline and baseline is not self else ""
        spread = f"({rates[0]:,.0f} to {rates[-1]:,.0f}, {len(rates)} rounds)"
        text = [f"{self.name:<34}{self.rate:>12,.0f} jobs/s  {spread}{ratio}"]
        roles = sorted({role for m in self.rounds for role in m.cpu_seconds})
        if roles:
            parts = [
                (role, statistics.median(m.cpu_seconds.get(role, 0.0) / m.jobs * 1e6 for m in self.rounds))
                for role in roles
            ]
            total = sum(value for _, value in parts)
            text.append(
                f"{'':<34}CPU us a job: "
                + ", ".join(f"{role} {value:.1f}" for role, value in parts)
                + f"; all {total:.1f}"
            )
        for key in sorted({key for m in self.rounds for key in m.extra}):
            values = sorted(m.extra[key] for m in self.rounds if key in m.extra)
            text.append(f"{'':<34}{key}: {statistics.median(values):,.2f}  ({values[0]:,.2f} to {values[-1]:,.2f})")
        if self.rounds[0].durability:
            text.append(f"{'':<34}durability: {self.rounds[0].durability}")
        return text


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One figure beside what is wanted of it."""

    what: str
    measured: float
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""

    @property
    def is_reached(self) -> bool:
        """A figure that is not a number reaches nothing."""
        low, high = self.at_least, self.at_most
        return self.measured >= (-math.inf if low is None else low) and self.measured <= (
            math.inf if high is None else high
        )

    def __str__(self) -> str:
        bound = f"at least {self.at_least:g}" if self.at_least is not None else f"at most {self.at_most:g}"
        verdict = "reached" if self.is_reached else "NOT REACHED"
        return f"{self.what:<66}{self.measured:8.3f} {self.unit:<8} wanted: {bound}: {verdict}"
