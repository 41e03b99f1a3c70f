"""What sparse work costs at the least: no plan costs less, and on simple work some plan costs as little."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard_scaler.simulator.rare import least_over_work
from tests.unit.scaler.simulator.hand import trace_of

SLACK = 100.0
START = 60.0


def least(*arrivals: float, work: float = 10.0, late_share: float = 0.0) -> float:
    """Seconds beyond the work."""
    trace = trace_of([(at, work, at + SLACK) for at in sorted(arrivals)])
    over = least_over_work(trace, cold_start_seconds=START, late_share=late_share)
    return (over - 1) * trace.total_work_seconds


@pytest.mark.parametrize(
    ("arrivals", "seconds"),
    [
        ([0], START),
        ([0, 99], START),  # the first waits for the second
        ([0, 100 + 10 + 10 + 30], START + 30),  # waiting for it idly costs less than a start
        ([0, 100 + 10 + 10 + 61], 2 * START),
        ([0, 500, 1000], 3 * START),
    ],
)
def test_starts_and_idle_time_are_weighed(arrivals: list[float], seconds: float) -> None:
    assert math.isclose(least(*arrivals), seconds, abs_tol=1e-6)


def test_jobs_that_may_be_late_save_starts() -> None:
    arrivals = [1000.0 * number for number in range(10)]
    assert least(*arrivals) == pytest.approx(10 * START)
    assert 7 * START <= least(*arrivals, late_share=0.2) <= 8 * START


def test_models_do_not_share_replicas() -> None:
    trace = trace_of([(0, 10, SLACK), (1, 10, 1 + SLACK)], models=[0, 1])
    assert least_over_work(trace, cold_start_seconds=START) == pytest.approx(1 + 2 * START / 20)


def test_jobs_with_different_time_are_refused() -> None:
    with pytest.raises(ValueError, match="the same time"):
        least_over_work(trace_of([(0, 1, 10), (1, 1, 12)]), cold_start_seconds=1)


@given(
    st.lists(st.floats(0, 2000), min_size=1, max_size=12),
    st.floats(1, 90),
    st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_no_plan_costs_less(arrivals: list[float], work: float, cuts: list[bool]) -> None:
    """Any cut of the jobs into replicas, each there from the latest start that is safe until its jobs are done."""
    arrivals = sorted(arrivals)
    groups = [[arrivals[0]]]
    for at, is_cut in zip(arrivals[1:], cuts, strict=False):
        if is_cut:
            groups.append([at])
        else:
            groups[-1].append(at)
    beyond = 0.0
    for group in groups:
        begin = min(at + SLACK - work * (place + 1) for place, at in enumerate(group))
        now = max(begin, group[0])
        for at in group:
            now = max(now, at) + work
            if now > at + SLACK + 1e-6:
                return  # one replica cannot do these in time
        beyond += START + now - max(begin, group[0]) - work * len(group)
    assert least(*arrivals, work=work) <= beyond + 1e-6
