"""The linear program against a search over every plan of a tiny case."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from batchyard_scaler.policy.records import Pool
from batchyard_scaler.simulator.bound import Unbounded, bound
from tests.unit.scaler.simulator.hand import pool_of, spot_of, trace_of

STEP = 100.0
PRICE = 3600 / STEP
"""A replica costs 1 a step."""


def test_it_equals_the_cheapest_of_all_whole_plans_where_that_needs_no_fractions() -> None:
    trace = trace_of([(0, 100, 99), (0, 100, 399), (0, 100, 399), (100, 100, 399), (300, 200, 399)], seconds=400)
    pool = pool_of(price_per_hour=PRICE, cold_start_seconds=50)
    found = bound(trace, pools=[pool], step_seconds=STEP)
    assert found.cost == pytest.approx(_cheapest([1, 0, 0, 0], [3, 1, 0, 2], start=0.5))


def _cheapest(urgent: list[int], arriving: list[int], *, start: float) -> float:
    """Over every plan of up to 3 replicas a step: `urgent` is due at once, and everything at the end."""
    best = float("inf")
    for plan in itertools.product(range(4), repeat=len(arriving)):
        waiting, is_met = 0, True
        for replicas, new, at_once in zip(plan, arriving, urgent, strict=True):
            waiting += new
            is_met &= replicas >= at_once
            waiting -= min(waiting, replicas)
        starts = sum(max(0, now - before) for before, now in zip((0, *plan), plan, strict=False))
        if is_met and waiting == 0:
            best = min(best, sum(plan) + start * starts)
    return best


def spot_pool() -> Pool:
    return pool_of(name="spot", capacity="spot", zones=["z"], price_per_hour=0.35 * PRICE, cold_start_seconds=0)


def test_spot_takes_what_it_has_nodes_for_and_the_rest_is_on_demand() -> None:
    trace = trace_of([(0, 100, 99), (0, 100, 99), (100, 100, 199)], seconds=200)
    pools = [pool_of(price_per_hour=PRICE, cold_start_seconds=0), spot_pool()]
    found = bound(trace, pools=pools, spot=spot_of((0, 1), (150, -1)), step_seconds=STEP)
    assert found.cost == pytest.approx(1 + 0.35 + 0.35)
    assert found.replicas["spot"].tolist() == pytest.approx([1, 1, 0])


def test_where_one_price_is_not_known_replica_hours_are_counted() -> None:
    trace = trace_of([(0, 100, 99), (0, 100, 99)], seconds=200)
    pools = [pool_of(price_per_hour=None, cold_start_seconds=0), spot_pool()]
    found = bound(trace, pools=pools, spot=spot_of((0, 1)), step_seconds=STEP)
    assert found.cost == pytest.approx(2 * STEP / 3600)


def test_firm_work_stays_off_spot() -> None:
    trace = trace_of([(0, 100, 99), (100, 100, 199)], tolerant=[False, True], seconds=200)
    pools = [pool_of(price_per_hour=PRICE, cold_start_seconds=0), spot_pool()]
    found = bound(trace, pools=pools, spot=spot_of((0, 5)), step_seconds=STEP)
    assert found.cost == pytest.approx(1 + 0.35)


def test_no_class_gives_back_what_it_was_served() -> None:
    # Two units due in the first step, one in the second: three replica-steps, whatever the classes.
    trace = trace_of([(0, 100, 199), (0, 200, 99)], seconds=200)
    found = bound(trace, pools=[pool_of(price_per_hour=PRICE, cold_start_seconds=0)], step_seconds=STEP)
    assert found.cost == pytest.approx(3)


def test_deadlines_beyond_all_limits_are_said_to_be() -> None:
    trace = trace_of([(0, 100 * 50, 99)], seconds=200)
    with pytest.raises(Unbounded, match="No fleet within the pools' limits"):
        bound(trace, pools=[pool_of()], step_seconds=STEP)


def test_many_spans_of_deadlines_are_merged_into_longer_ones() -> None:
    random = np.random.default_rng(0)
    jobs = [(at, 10.0, at + span) for at, span in zip(np.arange(0, 4000, 10.0), random.random(400) * 3000, strict=True)]
    exact = bound(trace_of(jobs, seconds=4000), pools=[pool_of()], step_seconds=STEP)
    work = 4000 / 3600
    assert work <= exact.cost + 1e-9
    assert exact.cost < 1.2 * work
