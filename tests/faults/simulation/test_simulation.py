"""The real transitions, dispatcher and retry policy through thousands of lives in which everything goes wrong.

`SIMULATION_EXAMPLES=20000 make test ARGS=tests/faults/simulation` tries so many lives, new ones every time; without it
the same ones are lived again and again.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from msgspec.structs import replace
from pysqlite3 import dbapi2

from batchyard.jobs import ClaimedJob, State
from batchyard.sharing import PATIENCE, Turn, take_turns
from batchyard.store import computations
from batchyard.store.chores import Chores
from batchyard.store.fleet import Fleet
from batchyard.store.moves import Moves
from batchyard.store.reaping import Reaping
from batchyard.store.sqlite import claims
from tests.faults.simulation.consumer import LEASE_SECONDS
from tests.faults.simulation.machine import Simulation

EXAMPLES = 60
STEPS = 50
ASKED_FOR = os.environ.get("SIMULATION_EXAMPLES")

LIVES = settings(
    max_examples=int(ASKED_FOR or EXAMPLES),
    stateful_step_count=STEPS,
    derandomize=ASKED_FOR is None,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.timeout(0 if ASKED_FOR else 600)
def test_nothing_is_lost_and_nothing_done_twice() -> None:
    run_state_machine_as_test(Simulation, settings=LIVES)


# --- mutants: what the simulation must find ---------------------------------------------------------------------------


def drop_the_attempt(patch: pytest.MonkeyPatch) -> None:
    """A write is fenced by its owner alone."""
    unfenced = {state: sql.replace("AND attempt = ?4", "AND ?4 > 0") for state, sql in claims._UPDATES.items()}
    assert unfenced != claims._UPDATES
    patch.setattr(claims, "_UPDATES", unfenced)


def release_whatever_attempt(patch: pytest.MonkeyPatch) -> None:
    """Handing a job back is fenced by its owner alone."""
    release = Fleet.release

    def unfenced(store: Any, held: Sequence[ClaimedJob], **named: Any) -> list[int]:
        views = {view.id: view for view in store.get_jobs([job.id for job in held], tenant_id=1)}
        return release(store, [replace(job, attempt=views[job.id].attempt) for job in held if job.id in views], **named)

    patch.setattr(Fleet, "release", unfenced)


def drop_the_state(patch: pytest.MonkeyPatch) -> None:
    """A write is fenced by owner and attempt, and not by the state."""
    unfenced = {state: sql.replace("AND state + 0 = 1", "") for state, sql in claims._UPDATES.items()}
    assert unfenced != claims._UPDATES
    patch.setattr(claims, "_UPDATES", unfenced)


def skip_the_sweep(patch: pytest.MonkeyPatch) -> None:
    """What dead consumers hold stays theirs."""
    patch.setattr(Reaping, "reap", lambda _store, *, limit: {})


def forget_retries(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Chores, "promote_due", lambda _store, *, limit: {})


def charge_preemption(patch: pytest.MonkeyPatch) -> None:
    """Handing a job back costs one of its failures."""
    release = Fleet.release

    def charging(store: Any, held: Sequence[ClaimedJob], *, owner: int, **named: Any) -> list[int]:
        back = release(store, held, owner=owner, **named)
        with store._file.writing() as handle:
            for job_id in back:
                handle.raw.execute("UPDATE jobs SET failures = failures + 1 WHERE id = ?", (job_id,))
        return back

    patch.setattr(Fleet, "release", charging)


def claim_past_deadlines(patch: pytest.MonkeyPatch) -> None:
    sql = claims._CANDIDATES.replace("j.deadline > ?3", "j.deadline > ?3 - 1000000000")
    assert sql != claims._CANDIDATES
    patch.setattr(claims, "_CANDIDATES", sql)


def claim_without_a_lease(patch: pytest.MonkeyPatch) -> None:
    sql = claims.PERMIT.replace("SELECT lease_until FROM consumers", "SELECT lease_until + 1000000000 FROM consumers")
    assert sql != claims.PERMIT
    patch.setattr(claims, "PERMIT", sql)


def succeed_though_cancelled(patch: pytest.MonkeyPatch) -> None:
    sql = claims._SUCCEED.replace("AND cancel_requested = 0", "")
    assert sql != claims._SUCCEED
    patch.setattr(claims, "_UPDATES", {**claims._UPDATES, State.SUCCEEDED: sql})


def count_usage_twice(patch: pytest.MonkeyPatch) -> None:
    """A repeated write of a result is counted again."""
    sort_out = claims.sort_out

    def counting_all(raw: Any, outcomes: Sequence[Any], *, owner: int) -> tuple[list[Any], set[int]]:
        writable, written = sort_out(raw, outcomes, owner=owner)
        again = [outcome for outcome in outcomes if outcome.job.id in written]
        raw.execute("UPDATE usage SET jobs = jobs + ?", (len(again),))
        return writable, written

    patch.setattr(claims, "sort_out", counting_all)


def give_way_at_whatever_attempt(patch: pytest.MonkeyPatch) -> None:
    """Who lets another go first is fenced by nothing."""
    patch.setattr(computations, "_is_held", lambda row, _job, *, owner: row is not None and row.state == State.RUNNING)


def keep_followers_waiting(patch: pytest.MonkeyPatch) -> None:
    """Nobody makes those due that wait for another job, and no lease does."""
    patch.setattr(Moves, "_free_followers", lambda *_: None)

    def for_ever(*mine: Any, **named: Any) -> Turn:
        turn = take_turns(*mine, **named)
        return turn._replace(until_ms=turn.until_ms + 10**9)

    patch.setattr(computations, "take_turns", for_ever)


# --- and what shows each of them ---


def begun(*moods: str, shares: bool = False) -> Simulation:
    machine = Simulation()
    machine.begin(consumers=1, claims_idly=True, shares=shares, moods=list(moods))
    return machine


def work(machine: Simulation, *, jobs: int, then: str) -> None:
    machine.work(0, idly=True, jobs=jobs, is_told=True, then=then, fault=None)


def ended(machine: Simulation) -> None:
    machine.holds()
    machine.teardown()


def an_outcome_arrives_at_the_next_attempt() -> None:
    machine = begun("mend")
    work(machine, jobs=8, then="write")
    machine.consumer("stick before run", place=0, executing=None)
    machine.live(2.0)  # the retry is due, and the same consumer holds the job again
    machine.arrive_late(0)
    ended(machine)


def a_release_arrives_at_the_next_attempt() -> None:
    machine = begun("echo")
    work(machine, jobs=0, then="hand back")
    work(machine, jobs=0, then="nothing")
    machine.arrive_late(0)
    ended(machine)


def an_outcome_arrives_twice() -> None:
    machine = begun("echo")
    work(machine, jobs=8, then="write")
    machine.arrive_late(0)
    ended(machine)


def a_consumer_dies_with_jobs() -> None:
    machine = begun("echo")
    work(machine, jobs=0, then="nothing")
    machine.consumer("die", place=0, executing=None)
    ended(machine)


def a_job_fails_for_now() -> None:
    machine = begun("mend")
    work(machine, jobs=8, then="write")
    ended(machine)


def a_job_is_handed_back() -> None:
    machine = begun("echo")
    work(machine, jobs=0, then="hand back")
    ended(machine)


def a_deadline_passes() -> None:
    machine = begun("echo")
    machine.ask("amend", place=0, deadline_seconds=0.2, fault=None)
    machine.trouble("all is suspended", place=0, fault=None, seconds=1.0)
    work(machine, jobs=0, then="nothing")
    ended(machine)


def a_lease_runs_out() -> None:
    machine = begun("echo")
    machine.trouble("all is suspended", place=0, fault=None, seconds=LEASE_SECONDS + 0.5)
    work(machine, jobs=0, then="nothing")
    ended(machine)


def a_running_job_is_cancelled() -> None:
    machine = begun("echo")
    work(machine, jobs=0, then="nothing")
    machine.ask("cancel", place=0, deadline_seconds=None, fault=None)
    work(machine, jobs=8, then="write")
    ended(machine)


def one_gives_way_at_the_next_attempt() -> None:
    machine = begun("echo", shares=True)
    for _ in range(PATIENCE + 2):
        machine._submit(["mend"])
    for _ in range(PATIENCE):
        work(machine, jobs=8, then="write")  # one after the other fails for now
        machine.world.store.promote_due(limit=10)
    machine.world.consumers[0].claim_head()  # and the others compute by themselves
    for place in reversed(range(len(machine.world.late))):
        machine.arrive_late(place)
    ended(machine)


def several_compute_the_same() -> None:
    machine = begun("mend", shares=True)
    machine._submit(["mend"])
    machine._submit(["mend"])
    work(machine, jobs=8, then="write")
    ended(machine)


SHOWN_BY: dict[Callable[[pytest.MonkeyPatch], None], Callable[[], None]] = {
    drop_the_attempt: an_outcome_arrives_at_the_next_attempt,
    release_whatever_attempt: a_release_arrives_at_the_next_attempt,
    drop_the_state: an_outcome_arrives_twice,
    skip_the_sweep: a_consumer_dies_with_jobs,
    forget_retries: a_job_fails_for_now,
    charge_preemption: a_job_is_handed_back,
    claim_past_deadlines: a_deadline_passes,
    claim_without_a_lease: a_lease_runs_out,
    succeed_though_cancelled: a_running_job_is_cancelled,
    count_usage_twice: an_outcome_arrives_twice,
    give_way_at_whatever_attempt: one_gives_way_at_the_next_attempt,
    keep_followers_waiting: several_compute_the_same,
}


@pytest.mark.parametrize("live", dict.fromkeys(SHOWN_BY.values()))
def test_what_shows_mutants_holds_without_them(live: Callable[[], None]) -> None:
    live()


@pytest.mark.parametrize("mutate", SHOWN_BY)
def test_a_mutant_is_found(mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    with pytest.raises((AssertionError, dbapi2.IntegrityError)):
        SHOWN_BY[mutate]()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutate", [skip_the_sweep, drop_the_state])
def test_random_lives_find_a_mutant(
    mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    with pytest.raises((AssertionError, dbapi2.IntegrityError)):
        run_state_machine_as_test(Simulation, settings=settings(LIVES, phases=[Phase.generate], print_blob=False))
