"""From where on a line is looked at."""

import pytest

from batchyard.store.postgres.floors import LONG_SECONDS, REST, Floors

LINE = (1, 1, 5)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def floors(clock: Clock) -> Floors:
    return Floors(clock)


def test_a_long_look_is_followed_by_looks_from_what_it_found(floors: Floors, clock: Clock) -> None:
    assert floors.of(LINE) == 0
    floors.learn(LINE, after=0, none_to=100, seconds=2.0)
    assert floors.of(LINE) == 100
    assert floors.of((1, 1, 6)) == 0
    assert floors.known() == {LINE: 100}
    clock.now += 2.0 * REST
    assert floors.of(LINE) == 0, "a twentieth of the time goes into looks from the beginning"
    assert floors.known() == {}


def test_later_looks_raise_the_place_and_not_its_time(floors: Floors, clock: Clock) -> None:
    floors.learn(LINE, after=0, none_to=100, seconds=1.0)
    clock.now += REST / 2
    floors.learn(LINE, after=100, none_to=200, seconds=0.001)
    assert floors.of(LINE) == 200
    clock.now += REST / 2
    assert floors.of(LINE) == 0


def test_a_look_that_was_quick_is_repeated_as_it_was(floors: Floors) -> None:
    floors.learn(LINE, after=0, none_to=100, seconds=LONG_SECONDS / 2)
    assert floors.of(LINE) == 0
    floors.learn(LINE, after=0, none_to=100, seconds=LONG_SECONDS)
    floors.learn(LINE, after=0, none_to=100, seconds=LONG_SECONDS / 2)
    assert floors.of(LINE) == 0


def test_a_look_from_further_on_tells_nothing_of_what_lies_before(floors: Floors) -> None:
    floors.learn(LINE, after=500, none_to=600, seconds=3.0)
    assert floors.of(LINE) == 0
    floors.learn(LINE, after=0, none_to=100, seconds=3.0)
    floors.learn(LINE, after=500, none_to=600, seconds=3.0)
    assert floors.of(LINE) == 100


def test_what_was_found_lower_meanwhile_does_not_lower_the_place(floors: Floors) -> None:
    floors.learn(LINE, after=0, none_to=100, seconds=3.0)
    floors.learn(LINE, after=50, none_to=60, seconds=3.0)
    assert floors.of(LINE) == 100
