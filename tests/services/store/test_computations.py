"""Jobs that compute the same: one computes, others wait for it or are served; whatever becomes of the first."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from msgspec.structs import replace

from batchyard.jobs import ClaimedJob, Outcome, State
from batchyard.sharing import PATIENCE, Computed, Division
from batchyard.store.base import JobStore
from tests.services.store.yard import LONG_MS, TENANT, Yard, eventually, failed, several_stores, succeeded, waiting

HOUR_MS = 3_600_000
KEY = b"k" * 32


def share(yard: Yard, held: Sequence[ClaimedJob], *, key: bytes = KEY, keep_ms: int = HOUR_MS) -> Division:
    return yard.store.share(held, [key] * len(held), owner=yard.owner, keep_ms=keep_ms)


def claim(yard: Yard, count: int = 1, **values: object) -> list[ClaimedJob]:
    return yard.claim(yard.submit(count, **values))


def led(yard: Yard, count: int = 2, **values: object) -> tuple[ClaimedJob, list[int]]:
    """So many jobs of which the first computes; it, and the ids of the others, which wait."""
    held = claim(yard, count, **values)
    division = share(yard, held)
    assert division.computing == {held[0].id}
    assert division.following == {job.id for job in held[1:]}
    assert not division.served
    return followed(held[0]), [job.id for job in held[1:]]


def followed(job: ClaimedJob) -> ClaimedJob:
    """As its consumer holds it from then on."""
    return replace(job, is_followed=True)


def serve(job: ClaimedJob, result: Computed) -> Outcome:
    by = result.job_id if result.tenant_id == job.tenant_id else 0
    return Outcome(job, State.SUCCEEDED, result.body, result.format, cost=result.cost, computed_by=by)


def due(yard: Yard) -> list[int]:
    """What the dispatcher queues now, or once the estimate of the clock has come as far as the database."""
    end = time.monotonic() + 0.05
    while not (queued := yard.store.promote_due(limit=1000)) and time.monotonic() < end:
        time.sleep(0.002)
    return sorted(job_id for ids in queued.values() for job_id in ids)


def test_one_computes_and_the_others_wait_for_it_uncharged(yard: Yard) -> None:
    first, others = led(yard, 5, max_failures=1)
    assert yard.states(others) == [State.WAITING] * 4
    view = yard.view(others[0])
    assert (view.failures, view.attempt, view.is_following, view.error) == (0, 1, True, None)
    assert view.not_before_ms is not None
    assert yard.store.now_ms() < view.not_before_ms <= yard.store.now_ms() + LONG_MS
    assert not yard.view(first.id).is_following
    assert due(yard) == []


def test_its_success_makes_them_due_and_each_is_served_once_claimed(yard: Yard) -> None:
    first, others = led(yard, 3)
    yard.finish([succeeded(first, cost=7)])
    assert due(yard) == others
    held = yard.claim(others)
    division = share(yard, held)
    result = Computed(job_id=first.id, tenant_id=TENANT, format=0, cost=7, body=yard.view(first.id).result_body or b"")
    assert division.served == dict.fromkeys(others, result)
    assert not division.computing | division.following
    assert yard.finish([serve(job, result) for job in held]) == others
    for job_id in others:
        view = yard.view(job_id)
        assert (view.state, view.result_body, view.computed_by) == (State.SUCCEEDED, result.body, first.id)
        assert (view.cost, view.device_us) == (7, 0)
    assert yard.view(first.id).computed_by is None
    assert sum(row.jobs for row in yard.store.usage()) == 3
    assert sum(row.device_us for row in yard.store.usage()) == 3


def test_a_result_serves_for_as_long_as_it_is_kept_and_then_is_computed_anew(yard: Yard) -> None:
    (first,) = claim(yard)
    assert share(yard, [first]).computing == {first.id}
    yard.finish([succeeded(followed(first))])
    held = claim(yard, 2)
    assert share(yard, held[:1]).served.keys() == {held[0].id}
    eventually(lambda: yard.store.now_ms() > (yard.view(first.id).finished_at_ms or 0) + 1)
    assert share(yard, held[1:], keep_ms=1).computing == {held[1].id}


def test_other_keys_have_nothing_to_do_with_one_another(yard: Yard) -> None:
    held = claim(yard, 3)
    division = yard.store.share(held, [b"a", b"b", b"a"], owner=yard.owner, keep_ms=HOUR_MS)
    assert division.computing == {held[0].id, held[1].id}
    assert division.following == {held[2].id}


Ending = Callable[[Yard, ClaimedJob], object]

ENDINGS: dict[str, Ending] = {
    "cancelled": lambda yard, job: (
        yard.store.cancel(job.id, tenant_id=TENANT),
        yard.finish([Outcome(job, State.CANCELLED)]),
    ),
    "cancelled by itself": lambda yard, job: yard.finish([Outcome(job, State.CANCELLED)]),
    "handed back": lambda yard, job: yard.store.release([job], owner=yard.owner),
    "held by its paused bulk": lambda yard, job: yard.store.release([job], owner=yard.owner),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_where_it_ends_otherwise_one_of_the_others_takes_over(yard: Yard, ending: str) -> None:
    bulk = yard.bulk() if "bulk" in ending else None
    first, others = led(yard, 4, **({} if bulk is None else {"bulk_id": bulk.id}))
    if bulk is not None:
        yard.store.pause_bulk(bulk.id, tenant_id=TENANT, paused=True)
        ENDINGS[ending](yard, first)
        yard.store.pause_bulk(bulk.id, tenant_id=TENANT, paused=False)
        yard.store.sweep_bulks(limit=10)
    else:
        ENDINGS[ending](yard, first)
    assert due(yard) == others
    held = yard.claim(others)
    division = share(yard, held)
    assert division.computing == {others[0]}
    assert division.following == {others[1], others[2]}
    yard.finish([succeeded(followed(held[0]))])
    assert due(yard) == others[1:]
    assert share(yard, yard.claim(others[1:])).served.keys() == set(others[1:])


def test_after_a_failure_the_next_takes_over_and_after_some_each_computes_for_himself(yard: Yard) -> None:
    computing, others = led(yard, 2 + PATIENCE)
    for _ in range(PATIENCE - 1):
        yard.finish([failed(computing)])
        assert due(yard) == others
        held = yard.claim(others)
        division = share(yard, held)
        assert division.computing == {others[0]}
        assert division.following == set(others[1:])
        computing, others = followed(held[0]), others[1:]
    yard.finish([failed(computing)])
    held = yard.claim(due(yard))
    division = share(yard, held)
    assert division.computing == {others[0]}
    assert not division.following
    assert not division.served
    yard.finish([failed(followed(held[0])), *[succeeded(job) for job in held[1:]]])
    assert yard.states(others) == [State.FAILED, State.SUCCEEDED]


def test_a_retry_lets_the_others_compute_meanwhile_and_is_served_by_them(yard: Yard) -> None:
    first, others = led(yard, 2)
    yard.finish([waiting(first, retry_in_ms=0)])
    assert due(yard) == [first.id, *others]
    (other,) = yard.claim(others)
    assert share(yard, [other]).computing == {other.id}
    (again,) = yard.claim([first.id])
    assert share(yard, [again]).following == {first.id}
    assert yard.view(first.id).failures == 1
    yard.finish([succeeded(followed(other))])
    assert due(yard) == [first.id]
    assert share(yard, yard.claim([first.id])).served[first.id].job_id == other.id


def test_they_wait_for_a_lease_at_the_longest_and_what_it_held_is_taken_over(yard: Yard) -> None:
    ids = yard.submit(2)
    dying = yard.consumer()
    gone = yard.claim(ids[:1], owner=dying)
    yard.store.share(gone, [KEY], owner=dying, keep_ms=HOUR_MS)
    assert share(yard, yard.claim(ids[1:])).following == {ids[1]}
    (lease,) = [info.lease_until_ms for info in yard.store.consumers() if info.id == dying]
    assert yard.view(ids[1]).not_before_ms == lease
    # The lease runs out, and nobody has noticed yet.
    yard.store.renew(dying, lease_ms=1, state="ready", stats={})
    (other,) = yard.claim(yard.submit(1))
    eventually(lambda: share(yard, [other]).computing == {other.id})
    yard.store.reap(limit=10)
    assert due(yard) == ids[1:]
    assert yard.finish([succeeded(gone[0])], owner=dying) == []
    yard.finish([succeeded(followed(other))])
    assert share(yard, yard.claim(ids)).served.keys() == set(ids)


def test_a_consumer_that_leaves_frees_those_that_wait(yard: Yard) -> None:
    leaving = yard.consumer()
    ids = yard.submit(2)
    yard.store.share(yard.claim(ids[:1], owner=leaving), [KEY], owner=leaving, keep_ms=HOUR_MS)
    share(yard, yard.claim(ids[1:]))
    yard.store.deregister(leaving)
    assert due(yard) == ids[1:]


def test_those_that_wait_can_be_cancelled_and_expire(yard: Yard) -> None:
    first, others = led(yard, 3, deadline_ms=yard.store.now_ms() + 300)
    assert yard.store.cancel(others[0], tenant_id=TENANT).state is State.CANCELLED
    eventually(lambda: yard.store.expire_due(limit=10) == others[1:])
    yard.finish([succeeded(first)])
    assert due(yard) == []
    assert yard.states(others) == [State.CANCELLED, State.EXPIRED]
    assert yard.store.forget_computations(limit=100) == 0


def test_a_back_off_is_not_cut_short_by_whom_it_once_followed(yard: Yard) -> None:
    first, (other,) = led(yard, 2)
    yard.store.release([first], owner=yard.owner)
    assert due(yard) == [other]
    (held,) = yard.claim([other])
    share(yard, [held])
    yard.finish([waiting(followed(held), retry_in_ms=LONG_MS)])
    (again,) = yard.claim([first.id])
    share(yard, [again])
    yard.finish([succeeded(followed(again))])
    assert due(yard) == []
    assert not yard.view(other).is_following


def test_who_is_cancelled_or_not_held_any_more_neither_leads_nor_waits(yard: Yard) -> None:
    cancelled, lost, mine = claim(yard, 3)
    yard.store.cancel(cancelled.id, tenant_id=TENANT)
    yard.store.release([lost], owner=yard.owner)
    division = share(yard, [cancelled, lost, mine])
    assert division == Division(computing=frozenset({mine.id}))
    assert yard.states([cancelled.id, lost.id, mine.id]) == [State.RUNNING, State.QUEUED, State.RUNNING]


def test_a_result_that_was_deleted_serves_nobody(yard: Yard) -> None:
    (first,) = claim(yard)
    share(yard, [first])
    yard.finish([succeeded(followed(first))])
    yard.store.forget(first.id, tenant_id=TENANT)
    (other,) = claim(yard)
    assert share(yard, [other]).computing == {other.id}


def test_another_tenants_result_is_not_named(yard: Yard) -> None:
    (first,) = claim(yard, tenant_id=yard.tenant())
    share(yard, [first])
    yard.finish([succeeded(followed(first))])
    (other,) = claim(yard)
    (result,) = share(yard, [other]).served.values()
    assert result.tenant_id == first.tenant_id
    yard.finish([serve(other, result)])
    view = yard.view(other.id)
    assert (view.result_body, view.computed_by) == (result.body, 0)


def test_what_serves_nobody_any_more_is_forgotten_in_rounds(yard: Yard) -> None:
    held = claim(yard, 6)
    keys = [b"%d" % n for n in range(6)]
    yard.store.share(held, keys, owner=yard.owner, keep_ms=1)
    assert yard.store.forget_computations(limit=100) == 0
    yard.finish([*[succeeded(followed(job)) for job in held[:4]], failed(followed(held[4]))])
    yard.store.forget(held[0].id, tenant_id=TENANT)
    eventually(lambda: yard.store.now_ms() > (yard.view(held[3].id).finished_at_ms or 0) + 1)
    assert [yard.store.forget_computations(limit=4) for _ in range(3)] == [4, 1, 0]
    # The one that runs is still known.
    (other,) = claim(yard)
    assert yard.store.share([other], keys[5:], owner=yard.owner, keep_ms=1).following == {other.id}


def test_a_thousand_keys_at_once(yard: Yard) -> None:
    keys = [b"%032d" % n for n in range(1000)]
    held = claim(yard, 1000)
    assert len(yard.store.share(held, keys, owner=yard.owner, keep_ms=HOUR_MS).computing) == 1000
    yard.finish([succeeded(followed(job)) for job in held])
    division = yard.store.share(claim(yard, 1000), keys, owner=yard.owner, keep_ms=HOUR_MS)
    assert sorted(result.job_id for result in division.served.values()) == [job.id for job in held]


@several_stores
def test_many_consumers_compute_each_thing_once(yard: Yard, open_another: Callable[[], JobStore]) -> None:
    """Whoever comes between a job's end and the look at it is neither lost nor computes again."""
    ids = yard.submit(60)
    keys = {job_id: b"%d" % (n % 3) for n, job_id in enumerate(ids)}
    computed: list[bytes] = []
    lock = threading.Lock()

    def consume(store: JobStore, part: Sequence[int]) -> None:
        owner = yard.consumer()
        while open_ids := [job_id for job_id in part if yard.view(job_id).state < State.SUCCEEDED]:
            store.promote_due(limit=1000)
            held = store.claim([(yard.queue, open_ids)], owner=owner)
            division = store.share(held, [keys[job.id] for job in held], owner=owner, keep_ms=HOUR_MS)
            outcomes = [serve(job, division.served[job.id]) for job in held if job.id in division.served]
            for job in held:
                if job.id not in division.served and job.id not in division.following:
                    with lock:
                        computed.append(keys[job.id])
                    outcomes.append(succeeded(followed(job)))
            store.finish(outcomes, owner=owner)

    with ThreadPoolExecutor(4) as threads:
        parts = [ids[n::4] for n in range(4)]
        for running in [threads.submit(consume, open_another(), part) for part in parts]:
            running.result(timeout=20)
    assert sorted(computed) == [b"0", b"1", b"2"]
    for key in set(computed):
        assert len({yard.view(job_id).result_body for job_id in ids if keys[job_id] == key}) == 1
