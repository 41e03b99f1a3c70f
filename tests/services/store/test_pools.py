"""What is kept about pools: decisions, what people fixed by hand, spend, and what scalers learned."""

import msgspec
import pytest

from batchyard.jobs import State
from batchyard.store.base import JobStore, Lease, LeaseLost, PoolDecision, PoolOverride, SpendRow
from tests.services.store.yard import Yard, succeeded, waiting


def decision(pool: str = "gpu") -> PoolDecision:
    return PoolDecision(
        pool=pool,
        replicas=3,
        live=1,
        reason="40 jobs",
        backlog_jobs=40,
        backlog_seconds=None,
        decided_at_ms=1_000,
        rule="deadline",
        binding_deadline_ms=60_000,
        unmeetable_jobs=2,
        zones={"a": 2, "b": 1},
    )


def test_the_last_decision_about_each_pool_is_kept_whole(store: JobStore) -> None:
    assert store.decisions() == []
    first, other = decision(), decision("cpu")
    store.report_decision(first, other)
    assert store.decisions() == [other, first]
    later = msgspec.structs.replace(first, replicas=0, backlog_seconds=2.5, binding_deadline_ms=None, zones={})
    store.report_decision(later)
    assert store.decisions() == [other, later]


def test_a_pin_and_a_pause_are_kept_apart(store: JobStore) -> None:
    assert store.overrides() == {}
    store.pin_pool("gpu", replicas=2)
    store.set_pool_paused("gpu", paused=True)
    assert store.overrides() == {"gpu": PoolOverride(pool="gpu", pinned=2, is_paused=True)}
    store.pin_pool("gpu", replicas=None)
    assert store.overrides() == {"gpu": PoolOverride(pool="gpu", is_paused=True)}
    store.set_pool_paused("gpu", paused=False)
    assert store.overrides() == {"gpu": PoolOverride(pool="gpu")}


def test_spend_adds_up_by_hour_and_what_was_learned_is_replaced(store: JobStore) -> None:
    hour = SpendRow(pool="gpu", hour=10, replica_seconds=60.0, dollars=0.5)
    store.record_signals(spent=[hour], learned_values={"speed": {"m": [1.5]}, "until": 5})
    later = msgspec.structs.replace(hour, hour=11)
    store.record_signals(spent=[hour, later], learned_values={"until": 6})

    assert store.spent(since_hour=10) == [SpendRow(pool="gpu", hour=10, replica_seconds=120.0, dollars=1.0), later]
    assert store.spent(since_hour=11) == [later]
    assert store.learned() == {"speed": {"m": [1.5]}, "until": 6}
    assert store.learned("until", "unknown") == {"until": 6}


def test_a_leader_that_was_followed_writes_nothing_more(store: JobStore) -> None:
    old, new = Lease(name="scaler", holder=1), Lease(name="scaler", holder=2)
    hour = SpendRow(pool="gpu", hour=10, replica_seconds=60.0, dollars=0.5)
    assert store.lead(old.name, holder=old.holder, lease_ms=60_000)
    store.report_decision(decision(), lease=old)
    store.record_signals(spent=[hour], learned_values={"until": 5}, lease=old)
    store.resign(old.name, holder=old.holder)
    assert store.lead(new.name, holder=new.holder, lease_ms=60_000)

    with pytest.raises(LeaseLost):
        store.report_decision(msgspec.structs.replace(decision(), replicas=9), lease=old)
    with pytest.raises(LeaseLost):
        store.record_signals(spent=[hour], learned_values={"until": 6}, lease=old)

    assert (store.decisions(), store.spent(since_hour=0)) == ([decision()], [hour])
    assert store.learned() == {"until": 5}
    store.report_decision(msgspec.structs.replace(decision(), replicas=4), lease=new)
    assert [made.replicas for made in store.decisions()] == [4]


def test_arrivals_never_fall(yard: Yard) -> None:
    ids = yard.submit(3)
    assert yard.store.arrivals() == {yard.queue: (3, 33)}
    yard.run(ids[:2])
    yard.store.cancel(ids[2], tenant_id=1)
    yard.store.forget(ids[0], tenant_id=1)
    yard.number_flushes()
    assert yard.store.arrivals() == {yard.queue: (3, 33)}


def move(yard: Yard, *, preemptions: int = 2, start_before_ms: int = 0) -> dict[int, list[int]]:
    return yard.store.move_to_firm(
        {yard.tolerant: yard.queue}, preemptions=preemptions, start_before_ms=start_before_ms, limit=100
    )


def preempt(yard: Yard, ids: list[int], *, times: int) -> None:
    for _ in range(times):
        held = yard.claim(ids, queue=yard.tolerant)
        assert len(yard.store.release(held, owner=yard.owner, preempted=True)) == len(ids)


def test_jobs_preempted_often_move_to_the_firm_lane(yard: Yard) -> None:
    often, once, held = (yard.submit(1, queue_id=yard.tolerant)[0] for _ in range(3))
    preempt(yard, [often, held], times=2)
    preempt(yard, [once], times=1)
    running = yard.claim([held], queue=yard.tolerant)

    assert move(yard) == {yard.queue: [often]}
    assert move(yard) == {}
    assert (yard.view(often).queue_id, yard.view(once).queue_id) == (yard.queue, yard.tolerant)
    assert yard.claim([often], queue=yard.tolerant) == [], "a ticket still out for the old queue claims nothing"
    assert yard.run([often]) == [often]
    assert yard.finish([succeeded(job) for job in running]) == [held], "what runs is left alone"


def test_a_job_that_waits_for_its_next_try_moves_too_but_is_not_ticketed(yard: Yard) -> None:
    [job_id] = yard.submit(1, queue_id=yard.tolerant)
    preempt(yard, [job_id], times=2)
    yard.finish([waiting(job, retry_in_ms=60_000) for job in yard.claim([job_id], queue=yard.tolerant)])
    assert move(yard) == {}
    assert (yard.view(job_id).queue_id, yard.view(job_id).state) == (yard.queue, State.WAITING)


def test_jobs_whose_slack_runs_out_move_to_the_firm_lane(yard: Yard) -> None:
    now = yard.store.now_ms()
    deadline = {"deadline_ms": now + 600_000, "queue_id": yard.tolerant}
    [soon] = yard.submit(1, start_by_ms=now + 60_000, **deadline)
    [later] = yard.submit(1, start_by_ms=now + 500_000, **deadline)
    [whenever] = yard.submit(1, queue_id=yard.tolerant)

    assert move(yard, start_before_ms=now + 120_000) == {yard.queue: [soon]}
    assert [yard.view(job_id).queue_id for job_id in (soon, later, whenever)] == [
        yard.queue,
        yard.tolerant,
        yard.tolerant,
    ]


def test_what_a_paused_bulk_holds_back_stays_where_it_is(yard: Yard) -> None:
    bulk = yard.bulk(queue_id=yard.tolerant)
    [job_id] = yard.submit(1, queue_id=yard.tolerant, bulk_id=bulk.id)
    preempt(yard, [job_id], times=2)
    yard.store.pause_bulk(bulk.id, tenant_id=1, paused=True)
    yard.sweep()
    assert move(yard) == {}
    yard.store.pause_bulk(bulk.id, tenant_id=1, paused=False)
    yard.sweep()
    assert move(yard) == {yard.queue: [job_id]}
