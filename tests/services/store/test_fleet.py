"""Consumers as they come, report and go."""

from batchyard.jobs import State
from batchyard.store.base import JobStore
from tests.services.store.yard import Yard, eventually


def test_a_consumer_registers_reports_and_leaves(store: JobStore) -> None:
    owner = store.register_consumer(
        pool="gpu", host="h", pid=12, device="cuda:0", capacity="spot", queue_ids=[3, 1], lease_ms=60_000
    )
    assert 0 < owner < 1 << 63
    (seen,) = store.consumers()
    assert (seen.id, seen.pool, seen.host, seen.pid, seen.device) == (owner, "gpu", "h", 12, "cuda:0")
    assert (seen.capacity, seen.state, seen.queue_ids, seen.stats) == ("spot", "starting", (3, 1), {})
    assert seen.ready_at_ms is None
    assert seen.lease_until_ms >= seen.started_at_ms + 60_000
    renewal = store.renew(owner, lease_ms=120_000, state="ready", stats={"rate": 1.5, "model": {"a": [1]}})
    assert (renewal.alive, list(renewal.cancelled)) == (True, [])
    (ready,) = store.consumers()
    assert (ready.state, ready.stats) == ("ready", {"rate": 1.5, "model": {"a": [1]}})
    assert ready.ready_at_ms is not None
    assert ready.lease_until_ms > seen.lease_until_ms
    store.renew(owner, lease_ms=120_000, state="draining", stats={})
    (draining,) = store.consumers()
    assert (draining.state, draining.ready_at_ms) == ("draining", ready.ready_at_ms)
    store.deregister(owner)
    assert [consumer.state for consumer in store.consumers()] == ["gone"]
    assert not store.renew(owner, lease_ms=1, state="ready", stats={}).alive
    store.deregister(owner)
    store.deregister(4242)


def test_ready_again_keeps_the_first_time(store: JobStore) -> None:
    owner = store.register_consumer(
        pool="p", host="h", pid=1, device="cpu", capacity="on_demand", queue_ids=[], lease_ms=60_000
    )
    store.renew(owner, lease_ms=60_000, state="ready", stats={})
    first = store.consumers()[0].ready_at_ms
    start = store.now_ms()
    eventually(lambda: store.now_ms() > start + 3)
    store.renew(owner, lease_ms=60_000, state="ready", stats={})
    assert store.consumers()[0].ready_at_ms == first


def test_an_unknown_consumer_is_told_so(store: JobStore) -> None:
    assert not store.renew(4242, lease_ms=60_000, state="ready", stats={}).alive


def test_a_consumer_tells_its_zone_and_when_its_machine_is_taken_back(store: JobStore) -> None:
    owner = store.register_consumer(
        pool="p", host="h", pid=1, device="cpu", capacity="spot", queue_ids=[], lease_ms=60_000
    )
    (before,) = store.consumers()
    assert (before.zone, before.preempted_at_ms) == ("", None)
    store.renew(owner, lease_ms=60_000, state="ready", stats={}, zone="z-1")
    store.renew(owner, lease_ms=60_000, state="draining", stats={}, is_preempted=True)
    first = store.consumers()[0]
    assert first.zone == "z-1"
    assert first.preempted_at_ms == first.lease_until_ms - 60_000
    eventually(lambda: store.now_ms() > (first.preempted_at_ms or 0) + 3)
    store.renew(owner, lease_ms=60_000, state="draining", stats={}, is_preempted=True)
    store.deregister(owner)
    (gone,) = store.consumers()
    assert (gone.state, gone.zone, gone.preempted_at_ms) == ("gone", "z-1", first.preempted_at_ms)


def test_what_a_preempted_consumer_still_holds_is_counted_as_preempted(yard: Yard) -> None:
    leaving = yard.consumer()
    ids = yard.submit(2)
    yard.claim(ids, owner=leaving)
    yard.store.renew(leaving, lease_ms=60_000, state="draining", stats={}, is_preempted=True)
    yard.store.deregister(leaving)
    assert [(view.state, view.preemptions, view.failures) for view in map(yard.view, ids)] == [(State.QUEUED, 1, 0)] * 2


def test_leaving_hands_back_what_is_held(yard: Yard) -> None:
    leaving = yard.consumer()
    ids = yard.submit(3)
    yard.claim(ids, owner=leaving)
    yard.store.cancel(ids[0], tenant_id=1)
    yard.store.deregister(leaving)
    assert yard.states(ids) == [State.CANCELLED, State.QUEUED, State.QUEUED]
    assert len(yard.claim(ids)) == 2
    assert yard.store.reap(limit=10) == {}


def test_owners_differ(yard: Yard) -> None:
    assert len({yard.consumer() for _ in range(10)}) == 10
