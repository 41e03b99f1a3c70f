"""Who goes first among jobs that compute the same, by how the one that is known to stands."""

import pytest

from batchyard.jobs import State
from batchyard.sharing import PATIENCE, Standing, Turn, take_turns

NOW, LEASE, OTHERS_LEASE = 10_000, 40_000, 25_000


def turn(mine: list[int], standing: Standing | None) -> Turn:
    return take_turns(mine, standing, now_ms=NOW, keep_ms=1000, lease_until_ms=LEASE)


def job(state: State, *, job_id: int = 1, finished_at: int | None = None, lease: int | None = OTHERS_LEASE) -> Standing:
    return Standing(job_id, state, finished_at, lease)


def test_where_nobody_is_known_the_first_computes_and_the_others_wait_under_its_lease() -> None:
    assert turn([7], None) == Turn(computing=[7], following=[], until_ms=LEASE)
    assert turn([7, 5, 9], None) == Turn(computing=[7], following=[5, 9], until_ms=LEASE)


def test_one_of_several_that_is_known_goes_on() -> None:
    assert turn([7, 5, 9], job(State.RUNNING, job_id=5)) == Turn(computing=[5], following=[7, 9], until_ms=LEASE)


def test_a_fresh_result_serves_all() -> None:
    assert turn([7, 8], job(State.SUCCEEDED, finished_at=NOW - 999)) == Turn(served_by=1)


def test_who_runs_elsewhere_is_waited_for_as_long_as_its_lease_lives() -> None:
    assert turn([7, 8], job(State.RUNNING)) == Turn(following=[7, 8], until_ms=OTHERS_LEASE)


@pytest.mark.parametrize("state", [State.FAILED, State.WAITING])
def test_after_a_failure_the_next_takes_over_and_after_some_everybody_computes(state: State) -> None:
    failed = job(state, finished_at=NOW)
    assert turn([7, 8], failed) == Turn(computing=[7], following=[8], until_ms=LEASE, failures=1)
    assert turn([7, 8], failed._replace(failures=PATIENCE - 1)) == Turn(computing=[7, 8], failures=PATIENCE)


def test_failures_are_counted_until_somebody_succeeds() -> None:
    cancelled = job(State.CANCELLED, finished_at=NOW)._replace(failures=2)
    assert turn([7], cancelled).failures == 2
    assert turn([7], cancelled._replace(failures=PATIENCE)) == Turn(computing=[7], failures=PATIENCE)
    assert turn([7], job(State.SUCCEEDED, finished_at=NOW - 1000)._replace(failures=PATIENCE)).failures == 0


@pytest.mark.parametrize(
    "standing",
    [
        job(State.SUCCEEDED, finished_at=NOW - 1000),
        job(State.RUNNING, lease=NOW),
        job(State.RUNNING, lease=None),
        job(State.QUEUED),
        job(State.CANCELLED, finished_at=NOW),
        job(State.EXPIRED, finished_at=NOW),
    ],
    ids=str,
)
def test_whatever_else_became_of_it_the_first_takes_over(standing: Standing) -> None:
    assert turn([7, 8], standing) == Turn(computing=[7], following=[8], until_ms=LEASE)
