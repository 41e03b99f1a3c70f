"""Claims: what may be claimed, by whom, and what a claim leaves behind."""

import pytest

from batchyard.jobs import State
from tests.services.store.yard import TENANT, Yard, eventually


def test_a_claim_takes_queued_jobs_in_order(yard: Yard) -> None:
    ids = yard.submit(5)
    claimed = yard.claim(reversed(ids))
    assert [job.id for job in claimed] == ids
    assert {job.attempt for job in claimed} == {1}
    view = yard.view(ids[0])
    assert (view.state, view.attempt) == (State.RUNNING, 1)
    assert view.started_at_ms is not None


def test_a_second_claim_of_the_same_ids_takes_nothing(yard: Yard) -> None:
    ids = yard.submit(3)
    yard.claim(ids)
    assert yard.claim(ids) == []
    assert yard.claim(ids, owner=yard.consumer()) == []


def test_repeated_ids_are_claimed_once(yard: Yard) -> None:
    ids = yard.submit(2)
    claimed = yard.store.claim([(yard.queue, [*ids, *ids]), (yard.queue, ids)], owner=yard.owner)
    assert [job.id for job in claimed] == ids


def test_unknown_and_foreign_queue_ids_are_absent(yard: Yard) -> None:
    ids = yard.submit(2)
    assert yard.claim([1, 2, 3]) == []
    assert yard.claim(ids, queue=yard.tolerant) == []
    assert yard.claim(ids, queue=999) == []
    assert len(yard.claim(ids)) == 2


def test_several_tickets_of_several_queues_are_one_claim(yard: Yard) -> None:
    firm, tolerant = yard.submit(2), yard.submit(3, queue_id=yard.tolerant)
    claimed = yard.store.claim([(yard.tolerant, tolerant), (yard.queue, firm)], owner=yard.owner)
    assert {(job.queue_id, job.id) for job in claimed} == {
        *((yard.queue, job_id) for job_id in firm),
        *((yard.tolerant, job_id) for job_id in tolerant),
    }


def test_empty_tickets_claim_nothing(yard: Yard) -> None:
    assert yard.store.claim([], owner=yard.owner) == []
    assert yard.store.claim([(yard.queue, [])], owner=yard.owner) == []


def test_only_a_live_lease_claims(yard: Yard) -> None:
    ids = yard.submit(1)
    brief, gone = yard.consumer(lease_ms=1), yard.consumer()
    yard.store.deregister(gone)
    eventually(lambda: yard.store.claim([(yard.queue, [1])], owner=brief) == [])
    eventually(lambda: yard.store.now_ms() > yard.view(ids[0]).created_at_ms + 20)
    assert yard.claim(ids, owner=brief) == []
    assert yard.claim(ids, owner=gone) == []
    assert yard.claim(ids, owner=4242) == []
    assert len(yard.claim(ids)) == 1


def test_a_job_past_its_deadline_is_not_claimed(yard: Yard) -> None:
    now = yard.store.now_ms()
    late, soon = yard.submit(1, deadline_ms=now - 1), yard.submit(1, deadline_ms=now + 600_000)
    assert [job.id for job in yard.claim([*late, *soon])] == soon


def test_a_paused_queue_is_not_claimed_from(yard: Yard) -> None:
    ids = yard.submit(1)
    yard.store.set_queue_paused(yard.queue, paused=True)
    assert yard.claim(ids) == []
    yard.store.set_queue_paused(yard.queue, paused=False)
    assert len(yard.claim(ids)) == 1


def test_a_paused_bulk_is_not_claimed_from_at_once(yard: Yard) -> None:
    bulk, plain = yard.bulk(), yard.submit(1)
    ids = yard.submit(2, bulk_id=bulk.id)
    yard.store.pause_bulk(bulk.id, tenant_id=TENANT, paused=True)
    assert [job.id for job in yard.claim([*ids, *plain])] == plain
    yard.sweep()
    assert yard.claim(ids) == []
    yard.store.pause_bulk(bulk.id, tenant_id=TENANT, paused=False)
    yard.sweep()
    assert len(yard.claim(ids)) == 2


def test_a_bulk_being_cancelled_is_not_claimed_from(yard: Yard) -> None:
    bulk = yard.bulk()
    ids = yard.submit(2, bulk_id=bulk.id)
    yard.store.cancel_bulk(bulk.id, tenant_id=TENANT)
    assert yard.claim(ids) == []


@pytest.mark.parametrize("state", ["running", "waiting", "succeeded", "cancelled"])
def test_only_queued_jobs_are_claimed(yard: Yard, state: str) -> None:
    ids = yard.submit(1)
    if state == "running":
        yard.claim(ids)
    elif state == "waiting":
        yard.fail_for_now(ids, retry_in_ms=600_000)
    elif state == "succeeded":
        yard.run(ids)
    else:
        yard.store.cancel(ids[0], tenant_id=TENANT)
    assert yard.view(ids[0]).state.word == state
    assert yard.claim(ids) == []


def test_every_claim_raises_the_attempt(yard: Yard) -> None:
    ids = yard.submit(1)
    for attempt in (1, 2, 3):
        (job,) = yard.claim(ids)
        assert job.attempt == attempt
        assert yard.store.release([job], owner=yard.owner) == ids


def test_jobs_of_every_tenant_and_priority_are_claimed_together(yard: Yard) -> None:
    other = yard.tenant()
    now = yard.store.now_ms()
    ids = yard.submit(2, priority=0) + yard.submit(2, tenant_id=other, priority=9, deadline_ms=now + 90_000)
    claimed = yard.claim(ids)
    assert [(job.tenant_id, job.priority) for job in claimed] == [(TENANT, 0)] * 2 + [(other, 9)] * 2
    assert [job.deadline_ms for job in claimed] == [None, None, now + 90_000, now + 90_000]


def test_params_come_with_the_jobs_that_have_them(yard: Yard) -> None:
    ids = yard.submit(2, params=b'{"a": 1}') + yard.submit(1) + yard.submit(1, params=b"{}")
    assert [job.params for job in yard.claim(ids)] == [b'{"a": 1}', b'{"a": 1}', None, b"{}"]
