"""The leader's chores: reaping, promoting, expiring, and who leads."""

import pytest

from batchyard.jobs import State
from batchyard.store.base import JobStore
from tests.services.store.yard import TENANT, Yard, eventually, succeeded


def test_a_dead_consumers_jobs_come_back_uncharged(yard: Yard) -> None:
    brief = yard.consumer(lease_ms=300)
    ids = yard.submit(3)
    held = yard.claim(ids, owner=brief)
    assert len(held) == 3
    assert yard.store.reap(limit=100) == {}
    back: list[int] = []

    def reaped() -> bool:
        for queue_id, queued in yard.store.reap(limit=2).items():
            assert queue_id == yard.queue
            assert len(queued) <= 2
            back.extend(queued)
        return len(back) == 3

    eventually(reaped)
    assert sorted(back) == ids
    views = [yard.view(job_id) for job_id in ids]
    assert {(view.state, view.attempt, view.failures, view.crashes) for view in views} == {(State.QUEUED, 1, 0, 0)}
    assert not yard.store.renew(brief, lease_ms=60_000, state="ready", stats={}).alive
    assert yard.finish([succeeded(job) for job in held], owner=brief) == []
    assert yard.claim(ids, owner=brief) == []
    assert {consumer.id: consumer.state for consumer in yard.store.consumers()}[brief] == "dead"


def test_reaping_cancels_where_that_was_asked_for(yard: Yard) -> None:
    brief = yard.consumer(lease_ms=200)
    ids = yard.submit(1)
    assert len(yard.claim(ids, owner=brief)) == 1
    yard.store.cancel(ids[0], tenant_id=TENANT)
    eventually(lambda: yard.store.reap(limit=10) == {} and yard.view(ids[0]).state is State.CANCELLED)


def test_a_renewed_lease_is_not_reaped(yard: Yard) -> None:
    brief = yard.consumer(lease_ms=1)
    ids = yard.submit(1)
    assert yard.store.renew(brief, lease_ms=60_000, state="ready", stats={}).alive
    assert len(yard.claim(ids, owner=brief)) == 1
    assert yard.store.reap(limit=10) == {}
    assert yard.view(ids[0]).state is State.RUNNING


def test_retries_are_promoted_when_due(yard: Yard) -> None:
    due, later = yard.submit(2), yard.submit(1)
    yard.fail_for_now(due)
    yard.fail_for_now(later, retry_in_ms=600_000)
    assert yard.store.promote_due(limit=1) in ({yard.queue: [due[0]]}, {yard.queue: [due[1]]})
    yard.store.promote_due(limit=10)
    assert yard.states([*due, *later]) == [State.QUEUED, State.QUEUED, State.WAITING]
    assert yard.store.promote_due(limit=10) == {}
    assert yard.view(due[0]).not_before_ms is None
    assert len(yard.claim(due)) == 2


def test_a_clock_believed_to_be_ahead_ends_no_job_early(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process believes of the database's clock is as wrong as the answer it took that from was slow."""
    soon = yard.store.now_ms() + 30_000
    ids = yard.submit(1, deadline_ms=soon, start_by_ms=soon)
    waiting = yard.submit(1)
    yard.fail_for_now(waiting, retry_in_ms=30_000)
    monkeypatch.setattr(yard.store, "now_ms", lambda: soon + 30_000)
    assert yard.store.expire_due(limit=10) == []
    assert yard.store.promote_due(limit=10) == {}
    assert yard.states([*ids, *waiting]) == [State.QUEUED, State.WAITING]


def test_queued_and_waiting_jobs_expire_and_running_ones_do_not(yard: Yard) -> None:
    soon = yard.store.now_ms() + 400
    ids = yard.submit(3, deadline_ms=soon, start_by_ms=soon)
    free = yard.submit(1)
    running, waiting = yard.claim(ids[:2])
    yard.store.release([waiting], owner=yard.owner)
    yard.fail_for_now([waiting.id], retry_in_ms=600_000)
    assert yard.store.expire_due(limit=10) == []
    expired: list[int] = []

    def both_expired() -> bool:
        expired.extend(yard.store.expire_due(limit=1))
        return len(expired) == 2

    eventually(both_expired)
    assert sorted(expired) == ids[1:]
    assert yard.states([*ids, *free]) == [State.RUNNING, State.EXPIRED, State.EXPIRED, State.QUEUED]
    assert yard.view(ids[2]).finished_at_ms is not None
    assert yard.finish([succeeded(running)]) == [running.id]
    late = yard.view(running.id)
    assert late.state is State.SUCCEEDED
    assert late.is_late
    assert yard.store.expire_due(limit=10) == []


def test_expired_jobs_of_a_bulk_stand_in_its_results(yard: Yard) -> None:
    bulk = yard.bulk()
    ids = yard.submit(2, bulk_id=bulk.id, deadline_ms=yard.store.now_ms() - 5)
    assert sorted(yard.store.expire_due(limit=10)) == ids
    yard.number_flushes()
    rows = yard.store.bulk_results(bulk.id, after_seq=0, limit=10)
    assert sorted((row.id, row.state) for row in rows) == [(job_id, State.EXPIRED) for job_id in ids]


def test_one_holder_leads_until_it_lets_go(store: JobStore) -> None:
    first = store.lead("dispatcher", holder=1, lease_ms=60_000)
    assert first
    assert not store.lead("dispatcher", holder=2, lease_ms=60_000)
    assert store.lead("dispatcher", holder=1, lease_ms=60_000) == first
    assert store.lead("other", holder=2, lease_ms=60_000)
    store.resign("dispatcher", holder=2)
    assert not store.lead("dispatcher", holder=2, lease_ms=60_000)
    store.resign("dispatcher", holder=1)
    assert store.lead("dispatcher", holder=2, lease_ms=60_000) > first
    store.resign("unknown", holder=2)


def test_a_lease_that_ran_out_is_taken_over(store: JobStore) -> None:
    assert store.lead("dispatcher", holder=1, lease_ms=100)
    eventually(lambda: bool(store.lead("dispatcher", holder=2, lease_ms=60_000)))
    assert not store.lead("dispatcher", holder=1, lease_ms=60_000)


def test_folding_drops_what_is_empty(yard: Yard) -> None:
    yard.run(yard.submit(3))
    while yard.store.fold(limit=10):
        pass
    (row,) = yard.store.backlog()
    assert (row.state, row.jobs, row.cost) == (State.SUCCEEDED, 3, 33)
