import pytest

from batchyard_consumers.speed import PROBE_EVERY, Line, Speed


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


def test_the_budget_climbs_until_batches_no_longer_gain() -> None:
    # Saturates at 19 b / a = 1,900 within a step.
    speed = Speed()
    run(speed, 60, a=1e-5, b=0.001)
    assert speed.is_settled
    assert 512 <= speed.budget <= 1024 * 2


def test_the_smallest_saturating_budget_is_preferred() -> None:
    speed = Speed()
    run(speed, 40, a=1e-4, b=0.0)
    assert speed.is_settled
    assert speed.budget <= 64


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
    run(speed, 6 * PROBE_EVERY, a=1e-5, b=0.01)
    assert speed.budget > small


def test_running_out_of_memory_shrinks_and_stops_the_climb() -> None:
    speed = Speed()
    run(speed, 6, a=1e-4, b=0.05)
    before = speed.budget
    speed.shrink()
    assert speed.budget == int(before * 0.8)
    assert speed.is_settled


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
    assert speed.budget == 4 * 32
    assert speed.batch_jobs == 4
