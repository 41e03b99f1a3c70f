"""Figures beside what is wanted of them."""

import math

import pytest

from tests.benchmarks.report import Wanted


@pytest.mark.parametrize(
    ("measured", "at_least", "at_most", "is_reached"),
    [(0.95, 0.95, None, True), (0.949, 0.95, None, False), (2.0, None, 2.0, True), (2.1, None, 2.0, False)],
)
def test_a_bound_is_reached_at_itself(
    measured: float, at_least: float | None, at_most: float | None, is_reached: bool
) -> None:
    assert Wanted(what="x", measured=measured, at_least=at_least, at_most=at_most).is_reached is is_reached


def test_what_is_not_a_number_reaches_nothing() -> None:
    assert not Wanted(what="x", measured=math.nan, at_most=1.0).is_reached
    assert not Wanted(what="x", measured=math.nan, at_least=1.0).is_reached


def test_a_line_says_what_is_wanted_and_whether_it_is_reached() -> None:
    line = str(Wanted(what="start", measured=2.5, at_most=2.0, unit="s"))
    assert line.split() == ["start", "2.500", "s", "wanted:", "at", "most", "2:", "NOT", "REACHED"]
