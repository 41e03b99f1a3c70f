"""Retiring what is no longer kept."""

import pytest

from batchyard.errors import Gone, NotFound
from batchyard.jobs import Accepted, State
from tests.services.store.yard import TENANT, Yard, failed, succeeded

KEEP_MS = 1 << 40


def _retire_all(yard: Yard, *, limit: int = 1_000, tombstone_ms: int = KEEP_MS) -> int:
    """Everything finished by now, bulks as the leader notes them. A store's idea of the time may be late by as long as
    it took to ask for it, so "now" is a moment later."""
    yard.store.finish_bulks(limit=100)
    before = yard.store.now_ms() + 10_000
    retired = 0
    for _ in range(20):
        step = yard.store.retire(finished_before_ms=before, limit=limit, tombstone_ms=tombstone_ms)
        assert step <= limit
        retired += step
    return retired


def test_only_what_finished_before_is_retired(yard: Yard) -> None:
    queued, running, done, broken, cancelled = yard.submit(5, labels=["x"])
    yard.claim([running])
    yard.run([done])
    yard.finish([failed(job) for job in yard.claim([broken])])
    yard.store.cancel(cancelled, tenant_id=TENANT)
    finished = yard.view(done).finished_at_ms
    assert finished is not None
    assert yard.store.retire(finished_before_ms=finished - 1, limit=100, tombstone_ms=KEEP_MS) == 0
    assert _retire_all(yard) == 3
    ids = [queued, running, done, broken, cancelled]
    assert {view.id for view in yard.store.get_jobs(ids, tenant_id=TENANT)} == {queued, running}
    assert sorted(yard.store.retired_among(ids, tenant_id=TENANT)) == [done, broken, cancelled]
    assert sum(row.jobs for row in yard.store.backlog()) == 2


def test_bytes_kept_go_back_to_what_is_left(yard: Yard) -> None:
    yard.submit(1, inputs=[b"12345"])
    before = yard.store.stored_bytes()
    ids = yard.submit(4)
    jobs = yard.claim(ids)
    yard.finish([succeeded(jobs[0]), failed(jobs[1]), succeeded(jobs[2], body=b"\x00" * 5000)])
    yard.fail_for_now([])
    yard.store.release(jobs[3:], owner=yard.owner)
    yard.fail_for_now(ids[3:])
    yard.store.cancel(ids[3], tenant_id=TENANT)
    assert yard.store.stored_bytes() > before
    assert _retire_all(yard) == 4
    assert yard.store.stored_bytes() == before


def test_steps_are_bounded_and_rounds_reach_everything(yard: Yard) -> None:
    ids = [job_id for _ in range(4) for job_id in yard.submit(25)]
    yard.run(ids[::2])
    assert _retire_all(yard, limit=4) == 50
    yard.run(ids[1::2])
    assert _retire_all(yard, limit=7) == 50
    assert yard.store.recount() == []


def test_a_bulk_goes_with_its_last_job(yard: Yard) -> None:
    bulk = yard.bulk(idempotency_key="b", idempotency_digest=b"d")
    ids = yard.submit(4, bulk_id=bulk.id, idempotency_key="c", idempotency_digest=b"d")
    yard.store.seal_bulk(tenant_id=TENANT, bulk_id=bulk.id)
    yard.run(ids[:2])
    assert _retire_all(yard) == 2
    view = yard.bulk_view(bulk)
    assert (view.jobs, dict(view.counts)) == (4, {State.SUCCEEDED: 2, State.QUEUED: 2})
    yard.run(ids[2:])
    yard.number_flushes()
    assert yard.bulk_view(bulk).is_finished
    assert {row.id for row in yard.store.bulk_results(bulk.id, after_seq=0, limit=9)} == set(ids[2:])
    assert _retire_all(yard) == 2
    with pytest.raises(Gone):
        yard.store.get_bulk(bulk.id, tenant_id=TENANT)
    with pytest.raises(NotFound):
        yard.store.get_bulk(bulk.id, tenant_id=99)
    assert yard.store.bulk_results(bulk.id, after_seq=0, limit=9) == []
    fresh = yard.bulk(idempotency_key="b", idempotency_digest=b"other")
    assert fresh.id != bulk.id


def test_an_open_bulk_stays_though_its_jobs_are_gone(yard: Yard) -> None:
    bulk = yard.bulk()
    yard.run(yard.submit(2, bulk_id=bulk.id))
    assert _retire_all(yard) == 2
    assert yard.bulk_view(bulk).jobs == 2
    yard.submit(1, bulk_id=bulk.id)


def test_forgetting_counts_towards_the_end_of_a_bulk(yard: Yard) -> None:
    bulk = yard.bulk()
    ids = yard.submit(2, bulk_id=bulk.id)
    yard.store.seal_bulk(tenant_id=TENANT, bulk_id=bulk.id)
    yard.run(ids)
    yard.store.forget(ids[0], tenant_id=TENANT)
    assert _retire_all(yard) == 1
    with pytest.raises(Gone):
        yard.store.get_bulk(bulk.id, tenant_id=TENANT)


def test_an_idempotency_key_lives_as_long_as_a_job_of_its_call(yard: Yard) -> None:
    call = yard.submission(3, idempotency_key="k", idempotency_digest=b"d")
    (first,) = yard.store.submit([call])
    assert isinstance(first, Accepted)
    ids = list(first.ids)
    yard.run(ids[:2])
    _retire_all(yard)
    (again,) = yard.store.submit([call])
    assert isinstance(again, Accepted)
    assert again.replayed
    yard.run(ids[2:])
    _retire_all(yard)
    (fresh,) = yard.store.submit([call])
    assert isinstance(fresh, Accepted)
    assert not fresh.replayed


def test_tombstones_go_after_their_time(yard: Yard) -> None:
    ids = yard.submit(1)
    yard.run(ids)
    _retire_all(yard)
    assert yard.store.retired_among(ids, tenant_id=TENANT) == ids
    _retire_all(yard, tombstone_ms=-10_000)
    assert yard.store.retired_among(ids, tenant_id=TENANT) == []
