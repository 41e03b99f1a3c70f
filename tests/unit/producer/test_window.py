"""The size of a window follows what is drained, and until then what was learned."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard_producer.window import (
    GROWTH,
    LEAST_JOBS,
    MOST_JOBS,
    Pace,
    jobs_allowed,
    learned_seconds_per_job,
    retry_seconds,
)


def test_what_consumers_learned_becomes_seconds_a_job() -> None:
    assert learned_seconds_per_job(seconds_per_unit=0.001, mean_cost=10) == pytest.approx(0.01)
    assert learned_seconds_per_job(seconds_per_unit=None, mean_cost=10) is None
    assert learned_seconds_per_job(seconds_per_unit=0.0, mean_cost=10) is None


def test_a_window_is_never_below_the_least_nor_above_the_most() -> None:
    pace = Pace(seconds=2)
    assert pace.window_jobs(now=0, learned_per_second=None) == LEAST_JOBS
    assert pace.window_jobs(now=0, learned_per_second=1.0) == LEAST_JOBS
    assert pace.window_jobs(now=0, learned_per_second=1e12) == MOST_JOBS


def test_until_it_is_measured_the_window_is_what_was_learned() -> None:
    pace = Pace(seconds=2)
    assert pace.window_jobs(now=0, learned_per_second=500) == 1000
    for step in range(25):
        pace.observe(100, now=step / 10, is_busy=True, is_starved=False)
    assert pace.window_jobs(now=2.4, learned_per_second=50_000) == pytest.approx(20 * 100 * GROWTH, rel=0.06)


def test_a_window_that_runs_dry_doubles_and_calms_down_again() -> None:
    pace = Pace(seconds=1)
    sizes = []
    for step in range(12):
        pace.observe(0, now=step / 100, is_busy=False, is_starved=True)
        sizes.append(pace.window_jobs(now=step / 100, learned_per_second=None))
    assert sizes[:3] == [512, 1024, 2048]
    assert sizes[-1] == MOST_JOBS
    for second in range(1, 14):
        pace.observe(0, now=second * 1.2, is_busy=False, is_starved=False)
    assert pace.window_jobs(now=20, learned_per_second=None) == LEAST_JOBS


def test_what_was_drained_long_ago_does_not_count() -> None:
    pace = Pace(seconds=2)
    pace.observe(10_000, now=0, is_busy=True, is_starved=False)
    assert pace.window_jobs(now=0, learned_per_second=None) == 12_500
    pace.observe(0, now=3, is_busy=False, is_starved=False)
    assert pace.window_jobs(now=3, learned_per_second=None) == LEAST_JOBS


@given(window=st.integers(0, MOST_JOBS), outstanding=st.integers(0, 2 * MOST_JOBS), members=st.integers(0, 50))
def test_what_is_allowed_never_exceeds_the_room(window: int, outstanding: int, members: int) -> None:
    allowed = jobs_allowed(window=window, outstanding=outstanding, members=members)
    assert 0 <= allowed * max(1, members) <= max(0, window - outstanding)


def test_jobs_are_ticketed_again_after_two_windows() -> None:
    assert retry_seconds(2.0, least=5.0) == 5.0
    assert retry_seconds(10.0, least=5.0) == 20.0
