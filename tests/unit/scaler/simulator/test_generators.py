"""Traces made from a seed have the shape that they say."""

from __future__ import annotations

import numpy as np
import pytest

from batchyard_scaler.simulator.generators import DAY, GENERATORS, bulk, bursts, diurnal, from_rates, sparse


@pytest.mark.parametrize("name", GENERATORS)
def test_the_same_seed_gives_the_same_jobs_and_another_does_not(name: str) -> None:
    once, again, other = (GENERATORS[name](seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(once.arrive_at, again.arrive_at)
    assert np.array_equal(once.due_at, again.due_at)
    assert name == "bulk" or not np.array_equal(once.arrive_at[:100], other.arrive_at[:100])
    assert (np.diff(once.arrive_at) >= 0).all()


def test_rates_become_arrivals_of_the_wanted_demand() -> None:
    rates = np.array([1.0, 3.0])
    trace = from_rates(
        rates, name="x", step_seconds=10_000, job_seconds=10, deadlines=(60, 600), mean_demand=20, seed=0
    )
    assert trace.mean_demand == pytest.approx(20, rel=0.05)
    assert (trace.arrive_at >= 10_000).mean() == pytest.approx(0.75, abs=0.01)
    assert np.isclose(trace.due_at - trace.arrive_at, 60).mean() == pytest.approx(0.5, abs=0.02)


def test_diurnal_is_lowest_at_midnight() -> None:
    trace = diurnal(days=4, seed=0)
    by_hour = np.bincount((trace.arrive_at % DAY // 3600).astype(int), minlength=24)
    assert by_hour.argmin() in {23, 0}
    assert by_hour.max() / by_hour.min() == pytest.approx(1.6 / 0.4, rel=0.15)


def test_bursts_are_as_high_as_they_say() -> None:
    by_minute = np.bincount((bursts(seed=0).arrive_at // 60).astype(int))
    assert np.quantile(by_minute, 0.999) / np.median(by_minute) == pytest.approx(10, rel=0.35)


def test_a_bulk_comes_at_once() -> None:
    assert set(bulk(jobs=100).arrive_at) == {600.0}


def test_the_sparse_trace_is_the_one_that_was_published() -> None:
    trace = sparse(seed=0)
    assert len(trace) == 27_000
    assert len(trace.models) == 80
    assert trace.seconds == pytest.approx(23 * DAY, rel=0.001)
    assert trace.total_work_seconds / 3600 == pytest.approx(213, rel=0.02)
    assert np.quantile(trace.work_seconds, [0.5, 0.9]) == pytest.approx([23, 53], rel=0.03)
    popularity = np.sort(np.bincount(trace.model, minlength=80))[::-1]
    assert popularity[0] / popularity[9] == pytest.approx(10**1.1, rel=0.3)
    by_hour = np.bincount((trace.arrive_at % DAY // 3600).astype(int), minlength=24)
    assert by_hour.max() / by_hour.min() == pytest.approx(1.6 / 0.4, rel=0.25)
