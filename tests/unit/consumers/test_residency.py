"""Who is in memory, and who leaves for whom."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from batchyard_consumers.residency import (
    MIN_STAY_SECONDS,
    PATIENCE_SECONDS,
    Copy,
    Standing,
    dropped_copies,
    next_move,
    preloaded,
)


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
        stands_by=st.booleans(),
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
    assert by_name[move.load].work_seconds > 0 or by_name[move.load].stands_by
    assert all(by_name[name].may_leave for name in move.evict)
    stay = sum(one.size for one in standings if one.is_resident and one.name not in move.evict)
    assert stay + by_name[move.load].size <= room


@given(STANDINGS)
def test_with_room_for_all_nobody_leaves_and_everybody_with_work_comes(standings: list[Standing]) -> None:
    move = next_move(standings, room=10**6)
    wanted = [one for one in standings if not one.is_resident and (one.work_seconds > 0 or one.stands_by)]
    assert (move is not None) == bool(wanted)
    assert move is None or not move.evict


@given(STANDINGS, st.integers(0, 12), st.randoms())
def test_the_order_in_which_models_are_listed_decides_nothing_about_those_with_work(
    standings: list[Standing], room: int, random: Any
) -> None:
    plain = [replace(one, stands_by=False) for one in standings]
    shuffled = random.sample(plain, len(plain))
    assert next_move(shuffled, room=room) == next_move(plain, room=room)


@given(STANDINGS, st.integers(0, 12))
def test_a_model_with_work_never_leaves_for_one_that_only_stands_by(standings: list[Standing], room: int) -> None:
    move = next_move(standings, room=room)
    by_name = {one.name: one for one in standings}
    if move is not None and not by_name[move.load].work_seconds:
        assert not any(by_name[name].work_seconds or by_name[name].stands_by for name in move.evict)


def test_warm_standby_comes_back_once_what_displaced_it_has_been_unused_for_a_while() -> None:
    away = standing("a", stands_by=True)
    displacing = resident("b", unused_seconds=29)
    assert next_move([away, displacing], room=4) is None
    move = next_move([away, replace(displacing, unused_seconds=30)], room=4)
    assert move is not None
    assert (move.load, list(move.evict)) == ("a", ["b"])
    waiting = standing("c", size=4, work_seconds=0.1, load_seconds=9)
    assert next_move([away, resident("b", work_seconds=1, unused_seconds=30), waiting], room=4) is None


def test_copies_give_way_the_longest_unused_first_and_no_more_than_it_takes() -> None:
    copies = [Copy(name=name, size=4, unused_seconds=seconds) for name, seconds in (("a", 1), ("b", 9), ("c", 5))]
    assert dropped_copies(copies, size=3, room=16) == []
    assert dropped_copies(copies, size=5, room=16) == ["b"]
    assert dropped_copies(copies, size=9, room=16) == ["b", "c"]
    assert dropped_copies(copies, size=16, room=16) == ["b", "c", "a"]
    assert dropped_copies(copies, size=17, room=16) is None
    assert dropped_copies([], size=1, room=0) is None


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 99)), max_size=6), st.integers(0, 9), st.integers(0, 40))
def test_copies_never_take_more_than_their_room(copies: list[tuple[int, float]], size: int, room: int) -> None:
    held = [Copy(name=str(n), size=each, unused_seconds=unused) for n, (each, unused) in enumerate(copies)]
    dropped = dropped_copies(held, size=size, room=room)
    assert (dropped is None) == (size > room)
    if dropped is not None:
        assert size + sum(one.size for one in held if one.name not in dropped) <= room


class Device(RuleBasedStateMachine):
    """Models of any size on one device, whose work comes and goes in any order; every move is carried out at once."""

    ROOM = 10
    SIZES = (1, 2, 3, 4, 5, 7, 10, 11)

    def __init__(self) -> None:
        super().__init__()
        self.models = {
            f"m{n}": standing(f"m{n}", size, load_seconds=2.0, is_pinned=n == 2, stands_by=n in {0, 2, 4})
            for n, size in enumerate(self.SIZES)
        }
        for name in preloaded([one for one in self.models.values() if one.stands_by], room=self.ROOM):
            self.models[name] = replace(self.models[name], is_resident=True)

    @rule(n=st.integers(0, len(SIZES) - 1), seconds=st.sampled_from([0.1, 5.0, 50.0, math.inf]))
    def work_arrives(self, n: int, seconds: float) -> None:
        one = self.models[f"m{n}"]
        self.models[one.name] = replace(one, work_seconds=seconds, unused_seconds=0.0)

    @rule(n=st.integers(0, len(SIZES) - 1))
    def work_is_done(self, n: int) -> None:
        one = self.models[f"m{n}"]
        if one.is_resident:
            self.models[one.name] = replace(one, work_seconds=0.0)

    @rule(seconds=st.sampled_from([1.0, MIN_STAY_SECONDS, PATIENCE_SECONDS]))
    def time_passes(self, seconds: float) -> None:
        for one in self.models.values():
            waits = one.work_seconds > 0 and not one.is_resident
            self.models[one.name] = replace(
                one,
                resident_seconds=one.resident_seconds + seconds,
                unused_seconds=0.0 if one.work_seconds else one.unused_seconds + seconds,
                waiting_seconds=one.waiting_seconds + seconds if waits else 0.0,
            )

    @rule(may_load=st.booleans())
    def one_moves(self, may_load: bool) -> None:
        move = next_move(list(self.models.values()), room=self.ROOM)
        if move is None:
            return
        for name in move.evict:
            gone = self.models[name]
            assert gone.may_leave
            assert not gone.is_pinned
            self.models[name] = replace(gone, is_resident=False)
        if may_load:
            come = replace(self.models[move.load], is_resident=True, resident_seconds=0.0, waiting_seconds=0.0)
            self.models[move.load] = come

    @invariant()
    def the_ledger_holds(self) -> None:
        assert sum(one.size for one in self.models.values() if one.is_resident) <= self.ROOM

    @invariant()
    def the_pinned_stays(self) -> None:
        assert self.models["m2"].is_resident

    def teardown(self) -> None:
        """Everything with work that fits beside what is pinned is served in the end."""
        room_left = self.ROOM - self.models["m2"].size
        waiting = {one.name for one in self.models.values() if one.work_seconds and one.size <= room_left}
        for _ in range(20 * len(self.models)):
            self.time_passes(PATIENCE_SECONDS)
            self.one_moves(may_load=True)
            for name in [name for name in waiting if self.models[name].is_resident]:
                waiting.remove(name)
                self.models[name] = replace(self.models[name], work_seconds=0.0)
        assert not waiting


TestModelsOfAnySizeInAnyOrder = Device.TestCase
TestModelsOfAnySizeInAnyOrder.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
