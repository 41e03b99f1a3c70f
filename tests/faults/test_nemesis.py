"""The schedule of faults is the seed's, and every fault that it may name can be injected."""

import random

import pytest

from tests.faults.nemesis import Nemesis, faults_of, schedule
from tests.faults.yard import COMBINATIONS, Combination


@pytest.mark.parametrize("combination", COMBINATIONS, ids=str)
def test_every_fault_of_a_combination_exists(combination: Combination) -> None:
    names = faults_of(combination)
    assert len(names) == len(set(names)) >= 20
    assert all(callable(getattr(Nemesis, name)) for name in names)


def test_all_combinations_together_have_the_size_of_a_commit() -> None:
    assert sum(len(faults_of(combination)) for combination in COMBINATIONS) >= 60


def test_a_seed_repeats_its_schedule_and_each_fault_comes_before_any_comes_again() -> None:
    first, again, other = (list(schedule("abcde", count=13, rng=random.Random(seed))) for seed in (7, 7, 8))
    assert first == again != other
    names = [name for _, name in first]
    assert [sorted(names[start : start + 5]) for start in (0, 5)] == [list("abcde")] * 2
    assert len(names) == 13
