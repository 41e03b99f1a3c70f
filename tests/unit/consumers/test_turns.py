"""Which of several versions has the device next."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard_consumers.turns import Contender, Turns, patience_seconds


def used_by(rounds: int, seconds: Callable[[str], float], **shares: float) -> dict[str, float]:
    """Seconds of the device that each version had, all of which always wait."""
    turns, used = Turns(), dict.fromkeys(shares, 0.0)
    for _ in range(rounds):
        key = turns.pick([Contender(key=name) for name in shares])
        assert key is not None
        turns.charge(key, seconds=seconds(key), share=shares[key])
        used[key] += seconds(key)
    return used


def test_models_share_the_device_by_time_not_by_batches() -> None:
    used = used_by(600, lambda key: 0.5 if key == "slow" else 0.01, slow=1.0, fast=1.0)
    assert used["slow"] == pytest.approx(used["fast"], rel=0.2)


def test_shares_divide_the_device() -> None:
    used = used_by(400, lambda _: 0.1, a=3.0, b=1.0)
    assert used["a"] == pytest.approx(3 * used["b"], rel=0.1)


def test_a_version_that_was_idle_is_not_owed_the_past() -> None:
    turns = Turns()
    a, b = Contender(key="a"), Contender(key="b")
    for _ in range(50):
        assert turns.pick([a]) == "a"
        turns.charge("a", seconds=1.0)
    picks = []
    for _ in range(6):
        key = turns.pick([a, b])
        assert key is not None
        picks.append(key)
        turns.charge(key, seconds=1.0)
    assert picks.count("b") in {3, 4}


def test_whoever_may_take_only_some_leaves_the_others_their_turn() -> None:
    turns = Turns()
    a, b = Contender(key="a"), Contender(key="b")
    assert turns.pick([a, b]) == "a"
    turns.charge("a", seconds=1.0)
    assert turns.pick([a, b], among=lambda key: key == "a") == "a"
    turns.charge("a", seconds=1.0)
    # b has waited all the while: it is owed two.
    for _ in range(2):
        assert turns.pick([a, b]) == "b"
        turns.charge("b", seconds=1.0)
    assert turns.pick([a, b], among=lambda key: key == "c") is None


def test_firm_work_of_any_model_goes_first_until_tolerant_work_is_overdue() -> None:
    turns = Turns()
    firm, tolerant = Contender(key="f"), Contender(key="t", is_firm=False)
    for _ in range(5):
        assert turns.pick([tolerant, firm]) == "f"
        turns.charge("f", seconds=1.0)
    assert turns.pick([Contender(key="t", is_firm=False, is_overdue=True), firm]) == "t"
    assert turns.pick([]) is None


@pytest.mark.parametrize(
    ("waiting", "on_their_way", "firm", "predicted", "seconds"),
    [
        (100, 50, True, 1.0, 0.0),  # a full batch
        (10, 0, True, 1.0, 0.0),  # nothing is coming
        (10, 5, True, 1.0, 0.020),
        (10, 5, False, 1.0, 0.050),
        (10, 5, True, 0.004, 0.004),  # never longer than the batch itself
        (10, 5, True, None, 0.020),
    ],
)
def test_a_free_device_waits_only_for_what_is_on_its_way(
    waiting: int, on_their_way: int, firm: bool, predicted: float | None, seconds: float
) -> None:
    found = patience_seconds(
        waiting_cost=waiting, budget=100, on_their_way=on_their_way, is_firm=firm, predicted_seconds=predicted
    )
    assert found == seconds


@given(
    st.dictionaries(st.sampled_from("abcd"), st.tuples(st.floats(0.5, 4), st.floats(0.01, 1)), min_size=2),
    st.integers(0, 2**32),
)
def test_nobody_who_waits_gets_less_than_its_share_but_for_one_batch_of_each(
    versions: dict[str, tuple[float, float]], seed: int
) -> None:
    turns, used = Turns(), dict.fromkeys(versions, 0.0)
    draw = random.Random(seed)
    longest = 2 * max(seconds for _, seconds in versions.values())
    for _ in range(200):
        key = turns.pick([Contender(key=name) for name in versions])
        assert key is not None
        seconds = versions[key][1] * draw.uniform(0.5, 2)
        turns.charge(key, seconds=seconds, share=versions[key][0])
        used[key] += seconds
        levels = [used[name] / share for name, (share, _) in versions.items()]
        assert max(levels) - min(levels) <= longest / min(share for share, _ in versions.values())
