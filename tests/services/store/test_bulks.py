"""Bulks: creation, progress, results in the order of completion, pausing and cancelling."""

import pytest

from batchyard.errors import IdempotencyConflict, NotFound
from batchyard.jobs import State
from tests.services.store.yard import TENANT, Yard, failed, succeeded


def test_a_new_bulk_is_empty_and_open(yard: Yard) -> None:
    bulk = yard.bulk(defaults=b'{"priority": 3}', chunk_size=500, created_by="by_x")
    assert yard.bulk_view(bulk) == bulk
    assert (bulk.jobs, dict(bulk.counts), bulk.cost, bulk.sealed_at_ms) == (0, {}, 0, None)
    assert (bulk.defaults, bulk.chunk_size, bulk.paused, bulk.cancel_requested) == (
        b'{"priority": 3}',
        500,
        False,
        False,
    )
    assert not bulk.is_finished


def test_a_bulk_is_created_once_per_key(yard: Yard) -> None:
    first = yard.bulk(idempotency_key="k", idempotency_digest=b"d")
    assert yard.bulk(idempotency_key="k", idempotency_digest=b"d").id == first.id
    with pytest.raises(IdempotencyConflict):
        yard.bulk(idempotency_key="k", idempotency_digest=b"e")
    assert yard.bulk(tenant_id=yard.tenant(), idempotency_key="k", idempotency_digest=b"e").id != first.id


def test_a_key_of_jobs_is_no_key_of_a_bulk(yard: Yard) -> None:
    yard.submit(1, idempotency_key="k", idempotency_digest=b"d")
    with pytest.raises(IdempotencyConflict):
        yard.bulk(idempotency_key="k", idempotency_digest=b"d")
    yard.bulk(idempotency_key="b", idempotency_digest=b"d")
    (answer,) = yard.store.submit([yard.submission(1, idempotency_key="b", idempotency_digest=b"d")])
    assert isinstance(answer, IdempotencyConflict)


def test_foreign_and_unknown_bulks_are_not_found(yard: Yard) -> None:
    bulk, other = yard.bulk(), yard.tenant()
    for tenant_id, bulk_id in ((other, bulk.id), (TENANT, 5)):
        with pytest.raises(NotFound):
            yard.store.get_bulk(bulk_id, tenant_id=tenant_id)
        with pytest.raises(NotFound):
            yard.store.seal_bulk(tenant_id=tenant_id, bulk_id=bulk_id)
        with pytest.raises(NotFound):
            yard.store.cancel_bulk(bulk_id, tenant_id=tenant_id)
        with pytest.raises(NotFound):
            yard.store.pause_bulk(bulk_id, tenant_id=tenant_id, paused=True)
    assert yard.bulk_view(bulk) == bulk


def test_sealing_again_changes_nothing(yard: Yard) -> None:
    bulk = yard.bulk()
    sealed = yard.store.seal_bulk(tenant_id=TENANT, bulk_id=bulk.id)
    assert sealed.sealed_at_ms is not None
    assert yard.store.seal_bulk(tenant_id=TENANT, bulk_id=bulk.id) == sealed
    assert sealed.is_finished, "an empty bulk has nothing left to do"


def test_counts_follow_the_jobs_and_cost_is_exact(yard: Yard) -> None:
    bulk = yard.bulk()
    ids = yard.submit(5, bulk_id=bulk.id)
    jobs = yard.claim(ids[:4])
    yard.finish([succeeded(jobs[0], cost=100), succeeded(jobs[1], cost=11), failed(jobs[2])])
    view = yard.bulk_view(bulk)
    assert dict(view.counts) == {State.QUEUED: 1, State.RUNNING: 1, State.SUCCEEDED: 2, State.FAILED: 1}
    assert (view.jobs, view.cost, view.is_finished) == (5, 111, False)
    yard.finish([succeeded(jobs[3])])
    yard.run(ids[4:])
    yard.store.seal_bulk(tenant_id=TENANT, bulk_id=bulk.id)
    assert yard.bulk_view(bulk).is_finished


def test_results_come_in_the_order_of_completion_with_a_cursor(yard: Yard) -> None:
    bulk = yard.bulk()
    ids = yard.submit(6, bulk_id=bulk.id, custom_ids=[f"c{n}" for n in range(6)])
    yard.run([ids[4], ids[5]])
    yard.run([ids[0]])
    (job,) = yard.claim([ids[1]])
    yard.finish([failed(job)])
    yard.store.cancel(ids[2], tenant_id=TENANT)
    yard.number_flushes()
    rows = yard.store.bulk_results(bulk.id, after_seq=0, limit=100)
    assert [row.id for row in sorted(rows[:2], key=lambda row: row.id)] == ids[4:]
    assert [row.id for row in rows[2:]] == [ids[0], ids[1], ids[2]]
    assert [row.seq for row in rows] == sorted(row.seq for row in rows)
    for row in rows:
        assert (row.index, row.custom_id) == (ids.index(row.id), f"c{ids.index(row.id)}")
    states = {row.id: (row.state, row.format) for row in rows}
    assert (states[ids[0]], states[ids[1]], states[ids[2]]) == (
        (State.SUCCEEDED, 0),
        (State.FAILED, 2),
        (State.CANCELLED, None),
    )
    seen: list[int] = []
    after = 0
    while page := yard.store.bulk_results(bulk.id, after_seq=after, limit=1):
        seen += [row.id for row in page]
        after = page[-1].seq
    assert seen == [row.id for row in rows]
    assert not yard.store.has_unnumbered(bulk.id)


def test_a_page_of_results_holds_whole_flushes(yard: Yard) -> None:
    bulk = yard.bulk()
    ids = yard.submit(900, bulk_id=bulk.id)
    for start in range(0, 900, 300):
        yard.run(ids[start : start + 300])
    yard.number_flushes()
    assert len(yard.store.bulk_results(bulk.id, after_seq=0, limit=1)) == 300
    assert len(yard.store.bulk_results(bulk.id, after_seq=0, limit=301)) == 600
    assert len(yard.store.bulk_results(bulk.id, after_seq=0, limit=10_000)) == 900


def test_results_of_another_bulk_stay_apart(yard: Yard) -> None:
    one, two = yard.bulk(), yard.bulk()
    first, second = yard.submit(2, bulk_id=one.id), yard.submit(2, bulk_id=two.id)
    yard.run([*first, *second])
    yard.number_flushes()
    assert {row.id for row in yard.store.bulk_results(one.id, after_seq=0, limit=9)} == set(first)
    assert {row.id for row in yard.store.bulk_results(two.id, after_seq=0, limit=9)} == set(second)
    assert yard.store.bulk_results(5, after_seq=0, limit=9) == []


def test_large_results_of_a_bulk_come_back_whole(yard: Yard) -> None:
    bulk = yard.bulk()
    jobs = yard.claim(yard.submit(5, bulk_id=bulk.id))
    bodies = [b"a" * 200_000, b"1", b"", bytes(range(256)) * 300, b"2"]
    yard.finish([succeeded(job, body=body) for job, body in zip(jobs, bodies, strict=True)])
    yard.number_flushes()
    rows = {row.index: row.body for row in yard.store.bulk_results(bulk.id, after_seq=0, limit=9)}
    assert [rows[index] for index in range(5)] == bodies


def test_a_pause_holds_queued_jobs_and_what_comes_back(yard: Yard) -> None:
    bulk = yard.bulk()
    ids = yard.submit(4, bulk_id=bulk.id)
    running, retrying = yard.claim(ids[:2])
    assert yard.store.pause_bulk(bulk.id, tenant_id=TENANT, paused=True).paused
    yard.sweep()
    assert yard.store.head(yard.queue, after={}, jobs=10, urgent_before_ms=0) == []
    assert yard.view(ids[2]).priority == 5, "people see the priority that was asked for"
    assert [yard.view(number).is_held for number in ids] == [False, False, True, True]
    yard.store.release([running], owner=yard.owner)
    later = yard.submit(1, bulk_id=bulk.id)
    assert yard.store.head(yard.queue, after={}, jobs=10, urgent_before_ms=0) == []
    assert yard.claim([*ids, *later]) == []
    assert yard.finish([succeeded(retrying)]) == [retrying.id], "what runs may finish"
    assert not yard.store.pause_bulk(bulk.id, tenant_id=TENANT, paused=False).paused
    yard.sweep()
    (line,) = yard.store.head(yard.queue, after={}, jobs=10, urgent_before_ms=0)
    assert [candidate.id for candidate in line.candidates] == [ids[0], ids[2], ids[3], *later]
    assert len(yard.claim([*ids, *later])) == 4


def test_a_retry_due_in_a_paused_bulk_is_held(yard: Yard) -> None:
    bulk = yard.bulk()
    ids = yard.submit(1, bulk_id=bulk.id)
    yard.fail_for_now(ids)
    yard.store.pause_bulk(bulk.id, tenant_id=TENANT, paused=True)
    yard.sweep()
    assert yard.store.promote_due(limit=10) == {}
    assert yard.view(ids[0]).state is State.QUEUED
    assert yard.claim(ids) == []
    yard.store.pause_bulk(bulk.id, tenant_id=TENANT, paused=False)
    yard.sweep()
    assert len(yard.claim(ids)) == 1


def test_pausing_and_resuming_before_the_sweep_leaves_all_free(yard: Yard) -> None:
    bulk = yard.bulk()
    ids = yard.submit(30, bulk_id=bulk.id)
    yard.store.pause_bulk(bulk.id, tenant_id=TENANT, paused=True)
    assert yard.store.sweep_bulks(limit=10) == 10
    yard.store.pause_bulk(bulk.id, tenant_id=TENANT, paused=False)
    yard.sweep()
    assert len(yard.claim(ids)) == 30


def test_cancelling_seals_and_ends_every_job(yard: Yard) -> None:
    bulk = yard.bulk()
    ids = yard.submit(4, bulk_id=bulk.id) + yard.submit(3, bulk_id=bulk.id)
    running, done = yard.claim(ids[:2])
    yard.finish([succeeded(done)])
    yard.fail_for_now([ids[2]], retry_in_ms=600_000)
    view = yard.store.cancel_bulk(bulk.id, tenant_id=TENANT)
    assert view.cancel_requested
    assert view.sealed_at_ms is not None
    yard.sweep()
    assert yard.store.renew(yard.owner, lease_ms=60_000, state="ready", stats={}).cancelled == [running.id]
    assert yard.finish([succeeded(running)]) == [running.id]
    assert yard.states(ids) == [State.CANCELLED, State.SUCCEEDED] + [State.CANCELLED] * 5
    assert yard.bulk_view(bulk).is_finished
    yard.number_flushes()
    rows = yard.store.bulk_results(bulk.id, after_seq=0, limit=100)
    assert sorted(row.id for row in rows) == ids


def test_a_paused_bulk_can_be_cancelled(yard: Yard) -> None:
    bulk = yard.bulk()
    ids = yard.submit(3, bulk_id=bulk.id)
    yard.store.pause_bulk(bulk.id, tenant_id=TENANT, paused=True)
    yard.sweep()
    yard.store.cancel_bulk(bulk.id, tenant_id=TENANT)
    yard.sweep()
    assert yard.states(ids) == [State.CANCELLED] * 3


def test_the_sweep_goes_in_bounded_steps(yard: Yard) -> None:
    bulk = yard.bulk()
    ids = [job_id for _ in range(3) for job_id in yard.submit(7, bulk_id=bulk.id)]
    yard.store.cancel_bulk(bulk.id, tenant_id=TENANT)
    moved = []
    while yard.bulk_view(bulk).counts.get(State.QUEUED):
        moved.append(yard.store.sweep_bulks(limit=5))
        assert moved[-1] <= 5
    assert sum(moved) == len(ids)


def test_bulks_are_listed_newest_first(yard: Yard) -> None:
    made = [yard.bulk() for _ in range(3)]
    yard.bulk(tenant_id=yard.tenant())
    newest = [bulk.id for bulk in reversed(made)]
    assert [view.id for view in yard.store.list_bulks(tenant_id=TENANT)] == newest
    assert [view.id for view in yard.store.list_bulks(tenant_id=TENANT, limit=2)] == newest[:2]
    assert [view.id for view in yard.store.list_bulks(tenant_id=TENANT, before_id=newest[1])] == newest[2:]
