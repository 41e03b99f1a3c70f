import math
import statistics
from random import Random

import pytest

from batchyard_consumers.speed import OUTDATED, PROBE_EVERY, PROBE_SHARE, Line, Speed


def run(speed: Speed, batches: int, *, a: float, b: float, cost: int = 1, floor: int = 0) -> None:
    """Full batches on a device that takes `a` a unit and `b` a batch; below `floor` a batch costs as much as there."""
    for _ in range(batches):
        jobs = max(1, min(speed.max_batch_jobs, speed.budget // cost))
        padded = jobs * cost
        speed.observe(padded_cost=padded, cost=padded, jobs=jobs, seconds=a * max(padded, floor) + b)


def test_the_line_is_found() -> None:
    line = Line()
    assert line.fit() is None
    for cost in (10, 20, 40, 80):
        line.add(cost, 0.5 * cost + 3.0)
    fit = line.fit()
    assert fit is not None
    assert fit == pytest.approx((0.5, 3.0))


def test_samples_of_one_size_give_a_proportion() -> None:
    line = Line()
    line.add(10, 5.0)
    line.add(10, 5.0)
    assert line.fit() == pytest.approx((0.5, 0.0))


def test_a_configured_budget_stays() -> None:
    speed = Speed(configured_budget=77)
    run(speed, 200, a=1e-6, b=0.01)
    assert speed.budget == 77
    assert speed.is_settled


def test_the_fastest_batch_of_a_size_counts() -> None:
    line = Line()
    for cost in (10, 20, 40, 80):
        line.add(cost, 0.5 * cost + 3.0)
        line.add(cost, 10 * (0.5 * cost + 3.0))
    assert line.fit() == pytest.approx((0.5, 3.0))


def test_many_large_batches_do_not_hide_what_small_ones_tell() -> None:
    line = Line()
    line.add(1, 1.1)
    for cost in range(900, 1000):
        line.add(cost, cost * (1.05 if cost % 2 else 1.0) + 0.1)
    fit = line.fit()
    assert fit is not None
    assert fit == pytest.approx((1.0, 0.1), rel=0.05)


def test_what_has_not_been_seen_for_long_is_forgotten() -> None:
    line = Line()
    line.add(1, 100.0)
    for _ in range(OUTDATED):
        line.add(1000, 1000.0)
        line.add(2000, 2000.0)
    assert line.fit() == pytest.approx((1.0, 0.0))


def test_passes_that_take_no_longer_for_more_are_all_overhead() -> None:
    speed = Speed()
    run(speed, 6, a=0.0, b=0.01)
    assert speed.seconds_for(10_000) == pytest.approx(0.01)
    assert speed.overhead_cost() == math.inf


def test_the_budget_climbs_to_the_smallest_step_that_saturates() -> None:
    speed = Speed()
    run(speed, 60, a=1e-5, b=0.001)
    assert speed.is_settled
    # 97 % of the time goes into the jobs from 32 b / a = 3,233 on; steps are powers of two.
    assert speed.budget == 4096


@pytest.mark.parametrize("seed", range(8))
def test_a_busy_machine_does_not_keep_the_budget_low(seed: int) -> None:
    # Every second batch loses up to as much again to others; what is measured must not end the climb, nor undo it.
    random = Random(seed)
    speed = Speed(max_batch_jobs=64)
    speed.expect(mean_cost=32)
    lowest = []
    for batch in range(3000):
        jobs = max(1, speed.budget // 32)
        slower = 1.0 + (random.random() if random.random() < 0.5 else 0.0) + 0.05 * random.random()
        speed.observe(padded_cost=jobs * 32, cost=jobs * 32, jobs=jobs, seconds=slower * (3e-4 * jobs * 32 + 0.005))
        if batch > 30 and not speed._is_probing:
            lowest.append(speed.budget)
    # 32 b / a = 539.
    assert min(lowest) >= 256
    assert max(lowest) <= 2048
    assert 512 <= statistics.median(lowest) <= 1024


def test_a_pass_that_is_only_work_needs_no_large_batches() -> None:
    speed = Speed()
    run(speed, 40, a=1e-4, b=0.0)
    assert speed.is_settled
    assert speed.budget <= 8


def test_a_small_batch_is_run_now_and_then() -> None:
    speed = Speed()
    run(speed, 60, a=1e-5, b=0.001)
    full, seen = speed.budget, []
    for _ in range(2 * PROBE_EVERY):
        seen.append(speed.budget)
        run(speed, 1, a=1e-5, b=0.001)
    assert set(seen) == {full, full // PROBE_SHARE}
    assert seen.count(full // PROBE_SHARE) < len(seen) / 10
    # Nothing else is smaller for it: what may be claimed, for one.
    assert speed.batch_jobs == min(speed.max_batch_jobs, full)


def test_no_step_is_tried_that_takes_too_long() -> None:
    speed = Speed(max_batch_seconds=0.25)
    run(speed, 100, a=0.01, b=0.05, cost=1)
    assert speed.budget <= 16


def test_a_batch_never_exceeds_the_number_of_jobs() -> None:
    speed = Speed()
    run(speed, 400, a=1e-9, b=0.01)
    assert speed.batch_jobs <= speed.max_batch_jobs
    assert speed.budget <= 2 * speed.max_batch_jobs


def test_a_settled_budget_follows_the_machine() -> None:
    speed = Speed()
    run(speed, 40, a=1e-4, b=0.0)
    small = speed.budget
    run(speed, 8 * PROBE_EVERY, a=1e-5, b=0.01)
    assert speed.budget > 8 * small
    run(speed, 12 * PROBE_EVERY, a=1e-4, b=0.0)
    assert speed.budget < 4 * small


def test_a_budget_that_takes_too_long_by_now_is_halved() -> None:
    speed = Speed(max_batch_seconds=0.25)
    run(speed, 60, a=1e-5, b=0.001)
    run(speed, 4 * PROBE_EVERY, a=1e-4, b=0.01)
    assert 0.1 < 1e-4 * speed.budget + 0.01 <= 0.25


def test_running_out_of_memory_shrinks_and_stops_the_climb() -> None:
    speed = Speed()
    run(speed, 14, a=1e-4, b=0.05)
    before = speed.budget
    speed.shrink(before)
    assert speed.budget == int(before * 0.8)
    assert speed.is_settled
    run(speed, 3 * PROBE_EVERY, a=1e-4, b=0.05)
    assert int(before * 0.8) < speed.budget < before


def test_a_batch_far_below_the_budget_that_runs_out_of_memory_says_where_it_ends() -> None:
    speed = Speed()
    run(speed, 14, a=1e-4, b=0.05)
    quarter = speed.budget // 4
    speed.shrink(quarter)
    assert speed.budget == int(0.8 * quarter)


def test_a_configured_budget_adapts_to_the_memory_and_recovers() -> None:
    speed = Speed(configured_budget=1000)
    speed.shrink(1000)
    assert speed.budget == 800
    budgets = set()
    for _ in range(6 * PROBE_EVERY):
        speed.observe(padded_cost=speed.budget, cost=speed.budget, jobs=10, seconds=0.1)
        budgets.add(speed.budget)
    assert sorted(budgets)[:3] == [800, 840, 882]
    assert speed.budget == 1000


def test_one_job_too_large_for_any_batch_costs_the_budget_nothing() -> None:
    speed = Speed()
    run(speed, 14, a=1e-4, b=0.05)
    before = (speed.budget, speed.is_settled)
    kept = speed.shrink(speed.budget)
    assert speed.budget < before[0]
    speed.forgive(kept)
    assert (speed.budget, speed.is_settled) == before


def test_figures_for_the_rest() -> None:
    speed = Speed(configured_budget=100)
    assert speed.seconds_for(10) is None
    speed.observe(padded_cost=100, cost=80, jobs=10, seconds=0.5, input_bytes=400)
    assert speed.mean_cost == 8
    assert speed.seconds_per_job == pytest.approx(0.05)
    assert speed.seconds_per_unit == pytest.approx(0.5 / 80)
    assert speed.units_per_byte == pytest.approx(0.2)
    assert speed.seconds_for(200) == pytest.approx(1.0)
    assert speed.batch_jobs == 12


def test_an_expectation_sets_the_first_batch() -> None:
    speed = Speed()
    speed.expect(mean_cost=32)
    assert speed.budget == 32
    assert speed.batch_jobs == 1


def test_half_of_a_device_costs_half_of_the_time() -> None:
    speed = Speed(configured_budget=100)
    speed.observe(padded_cost=100, cost=80, jobs=10, seconds=0.5, share=0.5)
    assert speed.seconds_per_job == pytest.approx(0.025)
    assert speed.seconds_per_unit == pytest.approx(0.25 / 80)
    # How long a batch takes is another matter.
    assert speed.seconds_for(100) == pytest.approx(0.5)
