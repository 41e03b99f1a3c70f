"""KEDA's and Kubernetes' own arithmetic, step by step."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchyard.settings import PoolSettings, Settings
from batchyard_scaler.policy.records import Decision
from batchyard_scaler.render.keda import scaled_object
from batchyard_scaler.simulator.autoscaler import Reading
from batchyard_scaler.simulator.hpa import Direction, Hpa, HpaSettings, StepPolicy


def read(value: float) -> Decision:
    return Reading(pool="pool", replicas=0, rule="metric", reason="", value=value)


def run(hpa: Hpa, values: list[float], *, current: int = 0, begin: float = 0.0, step: float = 15.0) -> list[int]:
    found = []
    for number, value in enumerate(values):
        current = hpa.look(begin + number * step, read(value), current=current)
        found.append(current)
    return found


EAGER = Direction(stabilization_seconds=0.0, policies=(StepPolicy(kind="Pods", value=100, period_seconds=15.0),))


@pytest.mark.parametrize(("value", "replicas"), [(11.0, 10), (11.01, 12), (9.0, 10), (8.99, 9), (10.4, 10), (25.2, 26)])
def test_a_ratio_within_a_tenth_changes_nothing_and_beyond_it_the_value_is_rounded_up(
    value: float, replicas: int
) -> None:
    hpa = Hpa(HpaSettings(up=EAGER, down=EAGER))
    assert run(hpa, [value], current=10) == [replicas]


def test_from_zero_keda_starts_one_and_the_autoscaler_the_rest_by_doubling_or_four_whichever_is_more() -> None:
    assert run(Hpa(HpaSettings()), [40, 40, 40, 40, 40], current=0) == [1, 5, 10, 20, 40]


def test_down_waits_until_the_highest_recommendation_of_five_minutes_has_passed() -> None:
    hpa = Hpa(HpaSettings())
    found = run(hpa, [10, *[2] * 21], current=10)
    # Recommended 10 at 0 s; it counts until 300 s later.
    assert found == [10] * 20 + [2, 2]


def test_zero_comes_when_the_cool_down_has_passed_since_it_was_active_last() -> None:
    hpa = Hpa(HpaSettings(cooldown_seconds=60, down=EAGER, polling_seconds=5))
    assert run(hpa, [3, 0, 0, 0, 0, 0], current=3) == [3, 1, 1, 1, 0, 0]


def test_never_below_its_minimum() -> None:
    hpa = Hpa(HpaSettings(minimum=2, down=EAGER))
    assert run(hpa, [0, 0], current=5) == [2, 2]
    assert hpa.look(30, read(0), current=0) == 2


def test_a_policy_counts_what_changed_within_its_period() -> None:
    slow = Direction(stabilization_seconds=0.0, policies=(StepPolicy(kind="Pods", value=3, period_seconds=60.0),))
    hpa = Hpa(HpaSettings(up=slow))
    # Three within a minute, so none until the first change is a minute old.
    assert run(hpa, [100] * 6, current=10) == [13, 13, 13, 13, 16, 16]


def test_percent_down_is_rounded_down() -> None:
    half = Direction(stabilization_seconds=0.0, policies=(StepPolicy(kind="Percent", value=50, period_seconds=15.0),))
    assert run(Hpa(HpaSettings(down=half)), [1] * 4, current=9) == [4, 2, 1, 1]


def test_between_syncs_only_activation_is_looked_at() -> None:
    hpa = Hpa(HpaSettings(polling_seconds=5, up=EAGER))
    assert run(hpa, [7, 7, 7, 7], current=0, begin=5, step=5) == [1, 1, 7, 7]


def test_ours_as_rendered_lands_on_each_decision() -> None:
    pool = PoolSettings(name="pool", models=("a",), min=0, max=50)
    document = scaled_object(Settings(state_dir=Path("state"), pools=(pool,)), pool)
    hpa = Hpa(HpaSettings.from_scaled_object(document))
    current, landed = 0, []
    for at, wanted in [(0, 20), (15, 20), (30, 21), (45, 3), (50, 3), (60, 0), (65, 1)]:
        decision = Decision(pool="pool", replicas=wanted, rule="deadline", reason="")
        current = hpa.look(at, decision, current=current)
        landed.append(current)
    assert landed == [1, 20, 21, 3, 3, 0, 1]
