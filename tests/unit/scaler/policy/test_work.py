"""Work by deadline, and what capacity leaves undone."""

import math

import pytest

from batchyard_scaler.policy.work import Piece, Replicas, Spare, apart_from_late, less, pieces_of, rest_of
from tests.unit.scaler.policy.fleets import demand, due, fleet, pool, spot

ALL = frozenset({"p"})


def piece(due_seconds: float, work_seconds: float) -> Piece:
    return Piece(due_seconds, work_seconds, work_seconds, ALL)


@pytest.mark.parametrize(
    ("seconds", "done"), [(-5, 0.0), (0, 0.0), (10, 40.0), (30, 2 * 2 * 30 + 2 * 10), (100, 2 * (200 + 80 + 50))]
)
def test_replicas_do_what_their_time_allows(seconds: float, done: float) -> None:
    assert Replicas(2, [50, 20], speed=2.0).by(seconds) == done


def test_what_capacity_leaves_is_what_is_too_late_in_the_order_of_deadlines() -> None:
    left = rest_of([piece(10, 15), piece(20, 3), piece(30, 40)], Replicas(1))
    assert [(one.due_seconds, one.work_seconds) for one in left] == [(10, 5), (30, 23)]
    assert [one.jobs for one in left] == [5, 23]


def test_work_that_is_kept_though_late_leaves_other_work_in_its_place() -> None:
    left = rest_of([piece(10, 15), piece(30, 20)], Replicas(1), kept_until_seconds=20)
    assert [(one.due_seconds, one.work_seconds) for one in left] == [(30, 5)]


def test_late_work_is_kept_as_far_as_it_is_done_before_others_could_help() -> None:
    late = [piece(-5, 10), piece(10, 30), piece(50, 7)]
    assert apart_from_late(late, Replicas(2), until_seconds=20) == (late, [])
    kept, helped = apart_from_late(late, Replicas(1), until_seconds=20)
    assert [(one.due_seconds, one.work_seconds, one.jobs) for one in kept] == [(-5, 5, 5), (10, 15, 15), (50, 7, 7)]
    assert [(one.due_seconds, one.work_seconds, one.jobs) for one in helped] == [(40, 5, 5), (40, 15, 15)]
    assert apart_from_late(late, Replicas(0), until_seconds=20)[0] == late[2:]


def test_what_is_spare_beside_other_work() -> None:
    spare = Spare(Replicas(1), [piece(10, 4), piece(30, 25)])
    assert [spare.by(seconds) for seconds in (5, 10, 20, 30, 40)] == [1, 1, 1, 1, 11]


def test_pieces_less_some_parts() -> None:
    left = less([piece(10, 15), piece(20, 3), piece(30, 4)], [piece(10, 5), piece(20, 3)])
    assert [(one.due_seconds, one.work_seconds, one.jobs) for one in left] == [(10, 10, 10), (30, 4, 4)]


def test_work_that_the_same_pools_do_at_one_time_is_one_piece() -> None:
    models = frozenset({"a@1", "b@1"})
    demands = [demand(due(60, 5), due(math.inf, 7), model=model, is_tolerant=True) for model in models]
    demands.append(demand(due(60, 11), model="a@1"))
    pools = [pool(models=models), spot(models=models)]
    found = pieces_of(fleet(pools, demands), pools)
    told = sorted((one.due_seconds, one.work_seconds, sorted(one.servers), one.has_deadline) for one in found)
    assert told == [(60.0, 10.0, ["p", "spot"], True), (60.0, 11.0, ["p"], True), (300.0, 14.0, ["p", "spot"], False)]


@pytest.mark.parametrize(("told", "taken"), [(600, 540), (90, 45), (30, 15), (-30, -30)])
def test_a_deadline_known_by_the_minute_is_taken_early(told: float, taken: float) -> None:
    one = fleet([pool()], [demand(due(told, 5))], due_step_seconds=60)
    assert pieces_of(one, one.pools)[0].due_seconds == taken
