"""Whose fault a consumer's death is: suspects, crash budgets, and the job that is failed in the end."""

import pytest

from batchyard.blame import CRASH_LIMIT, UNEXPLAINED_LIMIT
from batchyard.errors import NotFound
from batchyard.jobs import State
from batchyard.store.base import JobStore
from batchyard.store.retention import AWAY_KEPT_MS
from tests.services.store.yard import TENANT, Yard, eventually, failed, succeeded

SOLE = "was ended by SIGABRT"


def reap(yard: Yard, *, limit: int = 100) -> list[int]:
    return sorted(job_id for ids in yard.store.reap(limit=limit).values() for job_id in ids)


def die_of(yard: Yard, ids: list[int], executing: list[int]) -> list[int]:
    """A new consumer claims jobs and is seen to die; returns what came back to the queue."""
    owner = yard.consumer()
    assert [job.id for job in yard.claim(ids, owner=owner)] == ids
    assert yard.store.bury(owner, executing=executing, cause=SOLE)
    return reap(yard)


def suspects(yard: Yard, ids: list[int]) -> list[bool]:
    """By claiming them; they go back uncharged."""
    jobs = yard.claim(ids)
    yard.store.release(jobs, owner=yard.owner)
    return [job.suspect for job in jobs]


def test_what_was_executing_together_becomes_suspect_and_the_rest_does_not(yard: Yard) -> None:
    ids = yard.submit(4)
    assert die_of(yard, ids, ids[:2]) == ids
    assert [yard.view(job_id).crashes for job_id in ids] == [0] * 4
    assert suspects(yard, ids) == [True, True, False, False]


def test_who_is_buried_is_dead_at_once(yard: Yard) -> None:
    owner = yard.consumer()
    (job,) = yard.claim(yard.submit(1), owner=owner)
    assert yard.store.bury(owner, executing=[])
    assert not yard.store.bury(owner, executing=[job.id])
    assert not yard.store.renew(owner, lease_ms=60_000, state="ready", stats={}).alive
    assert yard.claim(yard.submit(1), owner=owner) == []
    assert reap(yard) == [job.id]
    assert yard.finish([succeeded(job)], owner=owner) == []
    assert suspects(yard, [job.id]) == [False]
    assert not yard.store.bury(4242, executing=[])


def test_a_job_that_ends_its_consumer_whenever_it_runs_alone_is_failed(yard: Yard) -> None:
    bulk = yard.bulk()
    ids = yard.submit(2, bulk_id=bulk.id)
    guilty, other = ids
    for crashes in range(1, CRASH_LIMIT):
        assert die_of(yard, ids, [guilty]) == ids
        assert (yard.view(guilty).crashes, yard.view(guilty).state) == (crashes, State.QUEUED)
    assert die_of(yard, ids, [guilty]) == [other]
    view = yard.view(guilty)
    assert (view.state, view.crashes, view.failures, view.attempt) == (State.FAILED, CRASH_LIMIT, 0, CRASH_LIMIT)
    assert view.finished_at_ms is not None
    assert view.error is not None
    assert (view.error.code, view.error.retryable) == ("crash_loop", False)
    assert SOLE in view.error.message
    assert suspects(yard, [other]) == [False]
    yard.number_flushes()
    assert [row.id for row in yard.store.bulk_results(bulk.id, after_seq=0, limit=10)] == [guilty]
    assert yard.bulk_view(bulk).counts[State.FAILED] == 1


def test_its_bytes_are_counted_and_given_back_as_those_of_any_failure(yard: Yard) -> None:
    empty = yard.store.stored_bytes()
    (guilty,) = yard.submit(1)
    for _ in range(CRASH_LIMIT):
        die_of(yard, [guilty], [guilty])
    error = yard.view(guilty).error
    assert error is not None
    assert yard.store.stored_bytes() > empty + len(error.message)
    yard.store.forget(guilty, tenant_id=TENANT)
    assert yard.store.stored_bytes() == empty


def test_the_error_takes_the_place_of_an_earlier_tries(yard: Yard) -> None:
    (guilty,) = yard.submit(1)
    yard.fail_for_now([guilty])
    eventually(lambda: bool(yard.store.promote_due(limit=10)))
    for _ in range(CRASH_LIMIT):
        die_of(yard, [guilty], [guilty])
    view = yard.view(guilty)
    assert (view.state, view.failures, view.error and view.error.code) == (State.FAILED, 1, "crash_loop")


def test_a_cancelled_job_is_cancelled_whatever_it_has_done(yard: Yard) -> None:
    (guilty,) = yard.submit(1)
    for _ in range(CRASH_LIMIT - 1):
        die_of(yard, [guilty], [guilty])
    owner = yard.consumer()
    yard.claim([guilty], owner=owner)
    yard.store.cancel(guilty, tenant_id=TENANT)
    yard.store.bury(owner, executing=[guilty])
    assert reap(yard) == []
    assert yard.view(guilty).state is State.CANCELLED


def test_leases_that_run_out_make_suspects_of_what_was_held_twice(yard: Yard) -> None:
    ids = yard.submit(2)
    for round_ in range(1, UNEXPLAINED_LIMIT + 1):
        assert suspects(yard, ids) == [False, False]
        owner = yard.consumer(lease_ms=300)
        held = ids if round_ == 1 else ids[:1]
        assert len(yard.claim(held, owner=owner)) == len(held)
        back: list[int] = []
        eventually(lambda back=back: bool(back.extend(reap(yard)) or back))  # type: ignore[misc]
        assert back == held
    assert suspects(yard, ids) == [True, False]
    assert [yard.view(job_id).crashes for job_id in ids] == [0, 0]


def test_a_suspect_that_was_noted_is_charged_when_the_lease_runs_out(yard: Yard) -> None:
    ids = yard.submit(2)
    owner = yard.consumer(lease_ms=300)
    yard.claim(ids, owner=owner)
    yard.store.note_solo(owner, job_id=ids[1])
    eventually(lambda: reap(yard) == ids)
    assert [yard.view(job_id).crashes for job_id in ids] == [0, 1]
    assert suspects(yard, ids) == [False, True]


def test_a_note_that_was_taken_back_charges_nobody(yard: Yard) -> None:
    (job_id,) = yard.submit(1)
    owner = yard.consumer(lease_ms=300)
    yard.claim([job_id], owner=owner)
    yard.store.note_solo(owner, job_id=job_id)
    yard.store.note_solo(owner, job_id=None)
    eventually(lambda: reap(yard) == [job_id])
    assert yard.view(job_id).crashes == 0


def test_a_consumer_that_left_in_order_is_nobodys_fault(yard: Yard) -> None:
    ids = yard.submit(2)
    owner = yard.consumer()
    yard.claim(ids, owner=owner)
    yard.store.note_solo(owner, job_id=ids[0])
    yard.store.deregister(owner)
    assert not yard.store.bury(owner, executing=ids)
    assert yard.states(ids) == [State.QUEUED] * 2
    assert suspects(yard, ids) == [False, False]


def test_steps_of_the_reaper_charge_each_job_once(yard: Yard) -> None:
    ids = yard.submit(5)
    owner = yard.consumer()
    yard.claim(ids, owner=owner)
    yard.store.bury(owner, executing=ids[:3])
    back: list[int] = []
    while step := reap(yard, limit=2):
        assert len(step) <= 2
        back += step
    assert sorted(back) == ids
    assert suspects(yard, ids) == [True] * 3 + [False] * 2


def test_a_suspect_may_still_succeed_or_fail_by_itself(yard: Yard) -> None:
    ids = yard.submit(2)
    die_of(yard, ids, ids)
    first, second = yard.claim(ids)
    assert yard.finish([succeeded(first), failed(second)]) == ids
    assert yard.states(ids) == [State.SUCCEEDED, State.FAILED]


def test_another_tenants_crash_shows_nowhere_else(yard: Yard) -> None:
    tenant = yard.tenant()
    (guilty,) = yard.submit(1, tenant_id=tenant)
    for _ in range(CRASH_LIMIT):
        die_of(yard, [guilty], [guilty])
    assert yard.view(guilty, tenant_id=tenant).state is State.FAILED
    assert yard.store.get_jobs([guilty], tenant_id=TENANT) == []
    with pytest.raises(NotFound):
        yard.store.forget(guilty, tenant_id=TENANT)


def test_notes_of_the_unknown_change_nothing(store: JobStore) -> None:
    store.note_solo(4242, job_id=1)
    assert store.consumers() == []


def test_a_machine_that_was_taken_back_blames_no_job(yard: Yard) -> None:
    ids = yard.submit(2)
    for preemptions in range(1, UNEXPLAINED_LIMIT + 1):
        owner = yard.consumer()
        yard.claim(ids, owner=owner)
        yard.store.renew(owner, lease_ms=1, state="draining", stats={}, is_preempted=True)
        back: list[int] = []
        eventually(lambda back=back: bool(back.extend(reap(yard)) or back))  # type: ignore[misc]
        assert back == ids
        assert [yard.view(job_id).preemptions for job_id in ids] == [preemptions] * 2
    assert suspects(yard, ids) == [False, False]
    assert [yard.view(job_id).crashes for job_id in ids] == [0, 0]


def test_a_consumer_long_gone_is_remembered_until_all_that_it_held_is_taken_back(yard: Yard) -> None:
    """As after a machine was off for days: its lease is old the moment it is found to be over."""
    ids = yard.submit(3)
    owner = yard.consumer()
    yard.claim(ids, owner=owner)
    yard.store.renew(owner, lease_ms=-3 * AWAY_KEPT_MS, state="ready", stats={})
    back = []
    for _ in ids:
        back += yard.store.reap(limit=1)[yard.queue]
        yard.store.retire(finished_before_ms=0, limit=10, tombstone_ms=1 << 40)
    assert sorted(back) == ids
    assert owner not in [consumer.id for consumer in yard.store.consumers()]
