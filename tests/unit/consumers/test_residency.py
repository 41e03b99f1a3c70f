"""Who is in memory, and who leaves for whom."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard_consumers.residency import Standing, next_move, preloaded


def standing(name: str, size: int = 4, **facts: Any) -> Standing:
    return Standing(name=name, size=size, **facts)


def resident(name: str, size: int = 4, **facts: Any) -> Standing:
    return standing(name, size, is_resident=True, **facts)


def test_nothing_moves_without_work() -> None:
    assert next_move([resident("a"), standing("b")], room=8) is None


def test_work_loads_its_model_while_there_is_room() -> None:
    move = next_move([resident("a", work_seconds=9), standing("b", work_seconds=0.1)], room=8)
    assert move is not None
    assert (move.load, list(move.evict)) == ("b", [])


def test_the_longest_unused_leaves_first_and_no_more_than_it_takes() -> None:
    move = next_move(
        [resident("a", unused_seconds=5), resident("b", unused_seconds=50), standing("c", work_seconds=1)], room=8
    )
    assert move is not None
    assert (move.load, list(move.evict)) == ("c", ["b"])


def test_pinned_models_and_new_ones_stay() -> None:
    there = [resident("a", is_pinned=True), resident("b", resident_seconds=1)]
    assert next_move([*there, standing("c", work_seconds=1)], room=8) is None


@pytest.mark.parametrize(
    ("wanted", "moves"),
    [
        ({"work_seconds": 5.9, "load_seconds": 2}, False),
        ({"work_seconds": 6.0, "load_seconds": 2}, True),
        ({"work_seconds": 0.1, "load_seconds": 2, "waiting_seconds": 30}, True),
        ({"work_seconds": 0.1, "load_seconds": 2, "is_pinned": True}, True),
    ],
)
def test_a_model_with_work_leaves_only_for_what_is_worth_it(wanted: dict[str, Any], moves: bool) -> None:
    move = next_move([resident("a", work_seconds=100), standing("b", **wanted)], room=7)
    assert (move is not None) is moves


def test_who_waits_longest_is_served_first() -> None:
    waiting = [standing("a", work_seconds=9, waiting_seconds=1), standing("b", work_seconds=1, waiting_seconds=2)]
    move = next_move([resident("c"), *waiting], room=4)
    assert move is not None
    assert move.load == "b"


def test_one_that_never_fits_keeps_nobody_out() -> None:
    move = next_move([standing("a", 99, work_seconds=9, waiting_seconds=9), standing("b", work_seconds=1)], room=8)
    assert move is not None
    assert move.load == "b"


def test_pinned_models_are_loaded_first_and_only_what_fits() -> None:
    assert preloaded([standing("a"), standing("b", 5), standing("c", is_pinned=True), standing("d")], room=8) == [
        "c",
        "a",
    ]


STANDINGS = st.lists(
    st.builds(
        Standing,
        name=st.uuids().map(str),
        size=st.integers(0, 6),
        is_resident=st.booleans(),
        is_pinned=st.booleans(),
        resident_seconds=st.sampled_from([0.0, 10.0]),
        unused_seconds=st.floats(0, 100),
        work_seconds=st.sampled_from([0.0, 0.5, 100.0]),
        waiting_seconds=st.sampled_from([0.0, 60.0]),
        load_seconds=st.floats(0, 20),
    ),
    max_size=6,
)


@given(STANDINGS, st.integers(0, 12))
def test_a_move_makes_room_and_harms_no_pinned_model(standings: list[Standing], room: int) -> None:
    move = next_move(standings, room=room)
    if move is None:
        return
    by_name = {one.name: one for one in standings}
    assert not by_name[move.load].is_resident
    assert by_name[move.load].work_seconds > 0
    assert all(by_name[name].may_leave for name in move.evict)
    stay = sum(one.size for one in standings if one.is_resident and one.name not in move.evict)
    assert stay + by_name[move.load].size <= room


@given(STANDINGS)
def test_with_room_for_all_nobody_leaves_and_everybody_with_work_comes(standings: list[Standing]) -> None:
    move = next_move(standings, room=10**6)
    assert (move is not None) == any(not one.is_resident and one.work_seconds > 0 for one in standings)
    assert move is None or not move.evict
