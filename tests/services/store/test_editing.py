"""Cancelling, amending and forgetting single jobs."""

import pytest

from batchyard.errors import Conflict, NotFound
from batchyard.jobs import State
from tests.services.store.yard import TENANT, Yard, succeeded


def test_queued_and_waiting_jobs_are_cancelled_at_once(yard: Yard) -> None:
    queued, waiting = yard.submit(2)
    yard.fail_for_now([waiting], retry_in_ms=600_000)
    for job_id in (queued, waiting):
        view = yard.store.cancel(job_id, tenant_id=TENANT)
        assert (view.state, view.cancel_requested) == (State.CANCELLED, True)
        assert view.finished_at_ms is not None
        assert yard.store.cancel(job_id, tenant_id=TENANT) == view
    assert yard.claim([queued, waiting]) == []
    assert yard.store.promote_due(limit=10) == {}


def test_a_running_job_is_flagged_and_its_consumer_hears_of_it(yard: Yard) -> None:
    job, other = yard.claim(yard.submit(2))
    assert yard.store.renew(yard.owner, lease_ms=60_000, state="ready", stats={}).cancelled == []
    view = yard.store.cancel(job.id, tenant_id=TENANT)
    assert (view.state, view.cancel_requested) == (State.RUNNING, True)
    assert list(yard.store.renew(yard.owner, lease_ms=60_000, state="ready", stats={}).cancelled) == [job.id]
    assert yard.finish([succeeded(job), succeeded(other)]) == [job.id, other.id]
    assert yard.view(job.id).state is State.CANCELLED


def test_a_finished_job_stays_as_it_is(yard: Yard) -> None:
    ids = yard.submit(1)
    yard.run(ids)
    view = yard.store.cancel(ids[0], tenant_id=TENANT)
    assert (view.state, view.cancel_requested) == (State.SUCCEEDED, False)
    assert view.result_body is not None


def test_amending_moves_a_job_between_lines(yard: Yard) -> None:
    ids = yard.submit(2)
    now = yard.store.now_ms()
    view = yard.store.amend(ids[1], tenant_id=TENANT, priority=9, deadline_ms=None, start_by_ms=None)
    assert (view.priority, view.deadline_ms) == (9, None)
    view = yard.store.amend(ids[1], tenant_id=TENANT, priority=None, deadline_ms=now + 90_000, start_by_ms=now + 80_000)
    assert (view.priority, view.deadline_ms) == (9, now + 90_000)
    lines = yard.store.head(yard.queue, after={}, jobs=9, urgent_before_ms=now + 85_000)
    assert {line.priority: [one.id for one in line.candidates] for line in lines} == {5: ids[:1], 9: ids[1:]}
    assert [one.id for line in lines for one in line.urgent] == ids[1:]
    unchanged = yard.store.amend(ids[0], tenant_id=TENANT, priority=None, deadline_ms=None, start_by_ms=None)
    assert unchanged == yard.view(ids[0])


def test_a_held_job_keeps_being_held_at_its_new_priority(yard: Yard) -> None:
    bulk = yard.bulk()
    ids = yard.submit(1, bulk_id=bulk.id)
    yard.store.pause_bulk(bulk.id, tenant_id=TENANT, paused=True)
    yard.sweep()
    assert yard.store.amend(ids[0], tenant_id=TENANT, priority=2, deadline_ms=None, start_by_ms=None).priority == 2
    assert yard.claim(ids) == []
    yard.store.pause_bulk(bulk.id, tenant_id=TENANT, paused=False)
    yard.sweep()
    assert [job.priority for job in yard.claim(ids)] == [2]


def test_only_queued_jobs_are_amended(yard: Yard) -> None:
    ids = yard.submit(1)
    yard.claim(ids)
    with pytest.raises(Conflict):
        yard.store.amend(ids[0], tenant_id=TENANT, priority=1, deadline_ms=None, start_by_ms=None)


def test_forgetting_deletes_a_finished_job_and_leaves_a_tombstone(yard: Yard) -> None:
    ids = yard.submit(2, labels=["x"])
    yard.run(ids)
    kept = yard.store.stored_bytes()
    yard.store.forget(ids[0], tenant_id=TENANT)
    assert [view.id for view in yard.store.get_jobs(ids, tenant_id=TENANT)] == ids[1:]
    assert yard.store.retired_among(ids, tenant_id=TENANT) == ids[:1]
    assert yard.store.stored_bytes() == kept - kept // 2
    assert sum(row.jobs for row in yard.store.backlog()) == 1
    with pytest.raises(NotFound):
        yard.store.forget(ids[0], tenant_id=TENANT)


def test_an_unfinished_job_is_not_forgotten(yard: Yard) -> None:
    ids = yard.submit(1)
    with pytest.raises(Conflict):
        yard.store.forget(ids[0], tenant_id=TENANT)
    yard.claim(ids)
    with pytest.raises(Conflict):
        yard.store.forget(ids[0], tenant_id=TENANT)


def test_foreign_and_unknown_jobs_are_not_found(yard: Yard) -> None:
    ids = yard.submit(1)
    for job_id, tenant_id in ((ids[0], yard.tenant()), (7, TENANT)):
        with pytest.raises(NotFound):
            yard.store.cancel(job_id, tenant_id=tenant_id)
        with pytest.raises(NotFound):
            yard.store.amend(job_id, tenant_id=tenant_id, priority=1, deadline_ms=None, start_by_ms=None)
        with pytest.raises(NotFound):
            yard.store.forget(job_id, tenant_id=tenant_id)
    assert yard.view(ids[0]).state is State.QUEUED
