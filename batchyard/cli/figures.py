"""Numbers for people."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 160


def output() -> Console:
    """Standard output; where it is no terminal, wide enough that nothing is cut."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH)


def count(number: float | None) -> str:
    return "–" if number is None else f"{number:,.0f}"


def rate(per_second: float | None) -> str:
    if per_second is None:
        return "–"
    return f"{per_second:,.0f}/s" if per_second >= 10 else f"{per_second:,.1f}/s"


def seconds(value: float | None) -> str:
    """A duration in the two units that matter."""
    if value is None:
        return "–"
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    for unit, size, part, part_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part_size} {part}"
    return f"{whole} s"


def money(dollars: float) -> str:
    return f"${dollars:,.2f}" if dollars >= 0.995 or not dollars else f"${dollars:.4f}"


def percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.0f} %"
