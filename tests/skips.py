"""In CI a skip is a failure, unless tests/allowed-skips.txt names the test with a reason. conftest.py has the hooks."""

import os
import re
from functools import cache
from pathlib import Path

import pytest

ALLOWED_SKIPS = Path(__file__).with_name("allowed-skips.txt")


def in_ci() -> bool:
    """Whether this run is CI's, where every server must be there."""
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def read_allowed(text: str) -> list[re.Pattern[str]]:
    """The patterns of an allow-list: per line a test id, in which `*` stands for anything, then ` # ` and a reason."""
    patterns = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        pattern, _, reason = line.partition(" # ")
        if not reason.strip():
            raise ValueError(f"allowed skips, line {number}: no reason after ' # ' in {line!r}")
        patterns.append(re.compile(".*".join(re.escape(part) for part in pattern.strip().split("*"))))
    return patterns


@cache
def _allowed() -> list[re.Pattern[str]]:
    return read_allowed(ALLOWED_SKIPS.read_text())


def refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip that is not on the list into a failure; an expected failure is no skip."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    if any(pattern.fullmatch(report.nodeid) for pattern in _allowed()):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid} was skipped, and tests/allowed-skips.txt does not name it: {reason}"
