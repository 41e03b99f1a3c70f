"""The outbox of webhooks: a row for each who hears of a job, however it ends; and deliveries until they end."""

from collections.abc import Callable, Sequence

import pytest
from sqlalchemy import select

from batchyard.errors import Conflict, NotFound, Unavailable
from batchyard.jobs import State
from batchyard.store.base import Delivery, DeliveryFilter, DeliveryState, DueDelivery, JobStore, Webhook
from batchyard.store.postgres import PostgresStore
from batchyard.store.sql import SqlStore
from batchyard.store.tables import webhook_deliveries
from batchyard.store.webhooks import MAX_WEBHOOKS
from batchyard.webhooks import ALL_EVENTS, Event
from tests.services.store.yard import TENANT, Yard, eventually, failed, several_stores, succeeded, waiting

URL = "https://receiver.example.com/jobs"
NAMED = "https://receiver.example.com/named"


def endpoint(yard: Yard, *events: str, tenant_id: int = TENANT) -> Webhook:
    return yard.store.create_webhook(tenant_id=tenant_id, url=URL, events=events or ALL_EVENTS, description="")


def outbox(yard: Yard, *, tenant_id: int = TENANT) -> list[Delivery]:
    """In the order in which it was written."""
    return yard.store.deliveries(DeliveryFilter(tenant_id=tenant_id), limit=1000)[::-1]


def told(yard: Yard) -> list[tuple[int, str]]:
    return sorted((delivery.subject_id, delivery.event.word) for delivery in outbox(yard))


def take(store: JobStore, *, limit: int = 100, of_one: int = 100, lease_ms: int = 60_000) -> list[DueDelivery]:
    return store.take_deliveries(limit=limit, of_one=of_one, underway={}, lease_ms=lease_ms)


# --- in ---------------------------------------------------------------------------------------------------------------


def succeed(yard: Yard, job_id: int) -> None:
    yard.run([job_id])


def fail(yard: Yard, job_id: int) -> None:
    yard.finish([failed(job) for job in yard.claim([job_id])])


def cancel_queued(yard: Yard, job_id: int) -> None:
    yard.store.cancel(job_id, tenant_id=TENANT)


def cancel_waiting(yard: Yard, job_id: int) -> None:
    yard.fail_for_now([job_id], retry_in_ms=600_000)
    yard.store.cancel(job_id, tenant_id=TENANT)


def cancel_running(yard: Yard, job_id: int) -> None:
    jobs = yard.claim([job_id])
    yard.store.cancel(job_id, tenant_id=TENANT)
    assert yard.finish([succeeded(job) for job in jobs]) == [job_id]


def cancel_and_release(yard: Yard, job_id: int) -> None:
    jobs = yard.claim([job_id])
    yard.store.cancel(job_id, tenant_id=TENANT)
    yard.store.release(jobs, owner=yard.owner)


def cancel_and_reap(yard: Yard, job_id: int) -> None:
    brief = yard.consumer()
    yard.claim([job_id], owner=brief)
    yard.store.cancel(job_id, tenant_id=TENANT)
    yard.store.bury(brief, executing=[])
    yard.store.reap(limit=10)


def expire(yard: Yard, job_id: int) -> None:
    yard.store.amend(job_id, tenant_id=TENANT, priority=None, deadline_ms=yard.store.now_ms() - 1, start_by_ms=None)
    assert yard.store.expire_due(limit=10) == [job_id]


def crash(yard: Yard, job_id: int) -> None:
    """Three processes end while it runs alone."""
    for _ in range(9):
        brief = yard.consumer()
        if not yard.claim([job_id], owner=brief):
            return
        yard.store.bury(brief, executing=[job_id], cause="signal 11")
        yard.store.reap(limit=10)


ENDS: list[tuple[Callable[[Yard, int], None], str]] = [
    (succeed, "job.succeeded"),
    (fail, "job.failed"),
    (crash, "job.failed"),
    (cancel_queued, "job.cancelled"),
    (cancel_waiting, "job.cancelled"),
    (cancel_running, "job.cancelled"),
    (cancel_and_release, "job.cancelled"),
    (cancel_and_reap, "job.cancelled"),
    (expire, "job.expired"),
]


@pytest.mark.parametrize(("end", "event"), ENDS, ids=[end.__name__ for end, _ in ENDS])
def test_every_way_to_end_a_job_is_told_once_to_each_who_hears_of_it(
    yard: Yard, end: Callable[[Yard, int], None], event: str
) -> None:
    hears = endpoint(yard, event, "bulk.finished")
    endpoint(yard, *(set(ALL_EVENTS) - {event}))
    endpoint(yard, tenant_id=yard.tenant())
    (job_id,) = yard.submit(1, webhook=NAMED)
    assert outbox(yard) == []
    end(yard, job_id)
    rows = outbox(yard)
    assert [(row.subject_id, row.event.word, row.state) for row in rows] == [(job_id, event, DeliveryState.PENDING)] * 2
    assert sorted(row.url for row in rows) == [URL, NAMED]
    assert {row.webhook_id for row in rows} == {hears.id, _for_named(yard).id}
    assert {row.created_at_ms for row in rows} == {yard.view(job_id).finished_at_ms}


def _for_named(yard: Yard) -> Webhook:
    (one,) = [webhook for webhook in yard.store.webhooks(tenant_id=TENANT) if webhook.url is None]
    return one


def test_what_is_written_again_is_told_once(yard: Yard) -> None:
    endpoint(yard)
    (job_id,) = yard.submit()
    outcomes = [succeeded(job) for job in yard.claim([job_id])]
    assert yard.finish(outcomes) == yard.finish(outcomes) == [job_id]
    assert told(yard) == [(job_id, "job.succeeded")]


def test_what_is_refused_or_not_the_end_is_not_told(yard: Yard) -> None:
    endpoint(yard)
    ids = yard.submit(2)
    jobs = yard.claim(ids)
    assert yard.finish([succeeded(job) for job in jobs], owner=yard.consumer()) == []
    yard.finish([waiting(jobs[0])])
    yard.store.release(jobs[1:], owner=yard.owner)
    assert outbox(yard) == []
    # A mixed flush: one fenced away, one ended.
    late = yard.claim(ids[1:])
    yard.store.promote_due(limit=10)
    current = yard.claim(ids[:1])
    yard.store.release(late, owner=yard.owner)
    assert yard.finish([succeeded(job) for job in [*current, *late]]) == ids[:1]
    assert told(yard) == [(ids[0], "job.succeeded")]


def test_where_the_outbox_cannot_be_written_nothing_ends(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise Unavailable("the disk is full")

    endpoint(yard)
    queued, running, bulk = yard.submit(), yard.submit(), yard.bulk()
    (job,) = yard.claim(running)
    yard.store.seal_bulk(tenant_id=TENANT, bulk_id=bulk.id)
    monkeypatch.setattr(yard.store, "_put", away)
    for end in (
        lambda: yard.store.cancel(queued[0], tenant_id=TENANT),
        lambda: yard.store.finish_bulks(limit=10),
    ):
        with pytest.raises(Unavailable):
            end()
    if not isinstance(yard.store, PostgresStore):  # there it is one statement
        with pytest.raises(Unavailable):
            yard.finish([succeeded(job)])
    assert yard.states([*queued, *running]) == [State.QUEUED, State.RUNNING]
    monkeypatch.undo()
    assert outbox(yard) == []
    assert yard.store.finish_bulks(limit=10) == 1


def test_a_tenants_endpoints_are_bounded(yard: Yard) -> None:
    for _ in range(MAX_WEBHOOKS):
        endpoint(yard)
    with pytest.raises(Conflict, match="at most"):
        endpoint(yard)
    endpoint(yard, tenant_id=yard.tenant())


def test_many_jobs_of_several_calls_and_tenants_are_told_apart(yard: Yard) -> None:
    mine, other = endpoint(yard, "job.succeeded"), yard.tenant()
    theirs = endpoint(yard, "job.succeeded", tenant_id=other)
    answers = yard.store.submit(
        [
            yard.submission(3),
            yard.submission(2, webhook=NAMED),
            yard.submission(1, tenant_id=other, webhook=f"{NAMED}/other"),
            yard.submission(1, tenant_id=yard.tenant()),
        ]
    )
    ids = [list(answer.ids) for answer in answers if not isinstance(answer, Exception)]
    yard.run([job_id for each in ids for job_id in each])
    rows = outbox(yard)
    assert sorted(row.subject_id for row in rows if row.webhook_id == mine.id) == ids[0] + ids[1]
    assert sorted((row.subject_id, row.url) for row in rows if row.webhook_id != mine.id) == [
        (job_id, NAMED) for job_id in ids[1]
    ]
    assert {(row.subject_id, row.url) for row in outbox(yard, tenant_id=other)} == {
        (ids[2][0], URL),
        (ids[2][0], f"{NAMED}/other"),
    }
    assert theirs.id in {row.webhook_id for row in outbox(yard, tenant_id=other)}


def test_a_disabled_endpoint_hears_of_nothing(yard: Yard) -> None:
    one = endpoint(yard)
    assert yard.store.disable_webhook(one.id, tenant_id=TENANT, because="paused").disabled_because == "paused"
    yard.run(yard.submit(2))
    yard.store.enable_webhook(one.id, tenant_id=TENANT)
    (job_id,) = yard.submit()
    yard.run([job_id])
    assert told(yard) == [(job_id, "job.succeeded")]


def test_a_jobs_url_is_among_what_it_was_given(yard: Yard) -> None:
    (job_id,) = yard.submit(1, webhook=NAMED)
    (given,) = yard.store.get_inputs([job_id], tenant_id=TENANT, max_bytes=1000)
    assert given.webhook == NAMED
    (other,) = yard.submit(1)
    (given,) = yard.store.get_inputs([other], tenant_id=TENANT, max_bytes=1000)
    assert given.webhook is None


# --- bulks ------------------------------------------------------------------------------------------------------------


def test_a_bulk_is_finished_once_however_it_ends(yard: Yard) -> None:
    one = endpoint(yard, "bulk.finished")
    empty, ran, cancelled, unsealed = (yard.bulk(webhook=NAMED) for _ in range(4))
    ids = yard.submit(3, bulk_id=ran.id)
    yard.submit(3, bulk_id=cancelled.id)
    yard.run(yard.submit(1, bulk_id=unsealed.id))
    for bulk in (empty, ran):
        yard.store.seal_bulk(tenant_id=TENANT, bulk_id=bulk.id)
    yard.store.cancel_bulk(cancelled.id, tenant_id=TENANT)
    yard.run(ids[:2])
    assert yard.store.finish_bulks(limit=10) == 1
    assert told(yard) == [(empty.id, "bulk.finished")] * 2
    yard.run(ids[2:])
    yard.sweep()
    # In pages, round by round; whatever was folded meanwhile.
    for _ in range(6):
        yard.store.finish_bulks(limit=1)
        yard.number_flushes()
    assert told(yard) == sorted([(bulk.id, "bulk.finished") for bulk in (empty, ran, cancelled)] * 2)
    assert {row.url for row in outbox(yard) if row.webhook_id != one.id} == {NAMED}
    assert yard.store.finish_bulks(limit=10) == 0


@several_stores
def test_leaders_that_finish_the_same_bulks_tell_it_once(yard: Yard, open_another: Callable[[], JobStore]) -> None:
    endpoint(yard, "bulk.finished")
    bulk = yard.bulk()
    yard.store.seal_bulk(tenant_id=TENANT, bulk_id=bulk.id)
    assert sum(store.finish_bulks(limit=10) for store in (yard.store, open_another(), open_another())) == 1
    assert told(yard) == [(bulk.id, "bulk.finished")]


# --- out --------------------------------------------------------------------------------------------------------------


def ended_jobs(yard: Yard, count: int = 1) -> list[int]:
    ids = yard.submit(count)
    yard.run(ids)
    return ids


def test_a_delivery_is_taken_once_and_again_when_its_attempt_is_lost(yard: Yard) -> None:
    one = endpoint(yard)
    (job_id,) = ended_jobs(yard)
    (due,) = take(yard.store, lease_ms=50)
    assert due.secrets == one.secrets
    assert (due.delivery.subject_id, due.delivery.attempts, due.delivery.url) == (job_id, 1, URL)
    assert take(yard.store, limit=0) == []
    again: list[DueDelivery] = []

    def taken_again() -> bool:
        again.extend(take(yard.store))
        return bool(again)

    eventually(taken_again)
    assert [each.delivery.attempts for each in again] == [2]
    assert take(yard.store) == []
    # The first attempt was given up: what it has to tell comes too late.
    assert not yard.store.end_delivery(due.delivery, status=200, error=None)
    assert yard.store.end_delivery(again[0].delivery, status=204, error=None)
    (row,) = outbox(yard)
    assert (row.state, row.status, row.error, row.attempts) == (DeliveryState.DELIVERED, 204, None, 2)
    assert row.ended_at_ms is not None
    assert not yard.store.end_delivery(again[0].delivery, status=500, error="late")


@several_stores
def test_several_processes_take_each_delivery_once(yard: Yard, open_another: Callable[[], JobStore]) -> None:
    endpoint(yard)
    ids = ended_jobs(yard, 20)
    taken = [due for store in (yard.store, open_another()) for due in take(store, limit=12)]
    assert sorted(due.delivery.subject_id for due in taken) == ids


def test_a_failed_attempt_is_made_again_when_it_is_due(yard: Yard) -> None:
    endpoint(yard)
    ended_jobs(yard)
    (due,) = take(yard.store)
    assert yard.store.end_delivery(due.delivery, status=503, error="answered 503", retry_in_ms=600_000)
    assert take(yard.store) == []
    (row,) = outbox(yard)
    assert (row.state, row.status, row.error) == (DeliveryState.PENDING, 503, "answered 503")
    assert row.due_at_ms > yard.store.now_ms() + 500_000
    assert yard.store.oldest_due_delivery_ms() is None


def test_after_the_last_attempt_it_is_dead_and_may_be_replayed(yard: Yard) -> None:
    one = endpoint(yard)
    first, second = ended_jobs(yard), ended_jobs(yard)
    for due in take(yard.store):
        assert yard.store.end_delivery(due.delivery, status=None, error="refused")
    assert take(yard.store) == []
    dead = DeliveryFilter(tenant_id=TENANT, state=DeliveryState.DEAD)
    rows = yard.store.deliveries(dead, limit=10)
    assert [row.subject_id for row in rows] == [*second, *first]

    by_id = DeliveryFilter(tenant_id=TENANT, id=rows[0].id)
    assert yard.store.replay_deliveries(by_id, limit=10) == [rows[0].id]
    (due,) = take(yard.store)
    assert (due.delivery.subject_id, due.delivery.attempts) == (second[0], 1)
    yard.store.end_delivery(due.delivery, status=200, error=None)
    # What was delivered is sent once more where that is asked for.
    assert yard.store.replay_deliveries(by_id, limit=10) == [rows[0].id]
    assert [due.delivery.id for due in take(yard.store)] == [rows[0].id]

    ended = rows[1].created_at_ms
    for other in (
        DeliveryFilter(tenant_id=yard.tenant(), webhook_id=one.id),
        DeliveryFilter(tenant_id=TENANT, webhook_id=one.id + 1),
        DeliveryFilter(tenant_id=TENANT, subject_id=first[0], before_ms=ended),
        DeliveryFilter(tenant_id=TENANT, subject_id=first[0], from_ms=ended + 1),
    ):
        assert yard.store.replay_deliveries(other, limit=10) == []
    span = DeliveryFilter(
        tenant_id=TENANT, webhook_id=one.id, state=DeliveryState.DEAD, from_ms=ended, before_ms=ended + 1
    )
    assert yard.store.replay_deliveries(span, limit=10) == [rows[1].id]


def test_a_slow_endpoint_takes_no_more_than_its_share(yard: Yard) -> None:
    slow, other = endpoint(yard, "job.succeeded"), endpoint(yard, "job.succeeded")
    ended_jobs(yard, 10)
    taken = take(yard.store, limit=7, of_one=4)
    counts = [sum(due.delivery.webhook_id == one.id for due in taken) for one in (slow, other)]
    assert sorted(counts) == [3, 4]
    more = yard.store.take_deliveries(limit=20, of_one=4, underway={slow.id: 4, other.id: 1}, lease_ms=60_000)
    assert [due.delivery.webhook_id for due in more] == [other.id] * 3
    oldest = yard.store.oldest_due_delivery_ms()
    assert oldest is not None
    assert oldest <= yard.store.now_ms()


def test_a_receiver_that_is_gone_disables_its_endpoint_and_what_is_pending_waits(yard: Yard) -> None:
    one = endpoint(yard)
    ended_jobs(yard, 2)
    (due,) = take(yard.store, limit=1)
    assert yard.store.end_delivery(due.delivery, status=410, error="answered 410", disables=True)
    (shown,) = yard.store.webhooks(tenant_id=TENANT)
    assert shown.disabled_at_ms is not None
    assert shown.disabled_because == "answered 410"
    assert take(yard.store) == []
    yard.store.enable_webhook(one.id, tenant_id=TENANT)
    assert len(take(yard.store)) == 1


def test_one_url_that_is_gone_does_not_disable_those_that_other_jobs_name(yard: Yard) -> None:
    yard.run(yard.submit(1, webhook=NAMED))
    (due,) = take(yard.store)
    yard.store.end_delivery(due.delivery, status=410, error="answered 410", disables=True)
    assert _for_named(yard).disabled_at_ms is None


def test_both_secrets_sign_while_one_takes_the_others_place(yard: Yard) -> None:
    one = endpoint(yard)
    ended_jobs(yard, 2)
    rotated = yard.store.rotate_webhook(one.id, tenant_id=TENANT, overlap_ms=60_000)
    assert rotated.secrets[1:] == one.secrets
    assert rotated.secrets[0] != one.secrets[0]
    (due,) = take(yard.store, limit=1)
    assert due.secrets == rotated.secrets
    at_once = yard.store.rotate_webhook(one.id, tenant_id=TENANT, overlap_ms=0)
    assert len(at_once.secrets) == 1
    assert at_once.secrets[0] not in rotated.secrets
    (due,) = take(yard.store)
    assert due.secrets == at_once.secrets


# --- what goes --------------------------------------------------------------------------------------------------------


def test_deliveries_go_with_their_job_and_their_bulk(yard: Yard) -> None:
    endpoint(yard)
    forgotten, kept = yard.submit(1, webhook=NAMED), yard.submit(1, webhook=NAMED)
    yard.run([*forgotten, *kept])
    yard.store.forget(forgotten[0], tenant_id=TENANT)
    assert {row.subject_id for row in outbox(yard)} == set(kept)
    bulk = yard.bulk(webhook=NAMED)
    yard.run(yard.submit(1, bulk_id=bulk.id))
    yard.store.seal_bulk(tenant_id=TENANT, bulk_id=bulk.id)
    _retire(yard)
    # A bulk stays until its end was told.
    assert outbox(yard) == []
    assert yard.store.finish_bulks(limit=10) == 1
    assert told(yard) == [(bulk.id, "bulk.finished")] * 2
    _retire(yard)
    assert outbox(yard) == []


def _retire(yard: Yard) -> None:
    for _ in range(5):
        yard.store.retire(finished_before_ms=yard.store.now_ms() + 60_000, limit=100, tombstone_ms=1 << 40)


def test_the_deliveries_of_an_endpoint_that_is_deleted_go_in_steps(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchyard.store.webhooks.DELETE_STEP", 3)
    one, other = endpoint(yard), endpoint(yard)
    yard.run(yard.submit(5))
    yard.store.delete_webhook(one.id, tenant_id=TENANT)
    assert [row.webhook_id for row in outbox(yard)] == [other.id] * 5
    yard.store.delete_webhook(other.id, tenant_id=TENANT)
    assert isinstance(yard.store, SqlStore)
    assert not yard.store._finds(select(webhook_deliveries))


def test_an_endpoint_goes_with_its_deliveries_and_only_at_its_tenants_word(yard: Yard) -> None:
    one = endpoint(yard)
    yard.run(yard.submit(1, webhook=NAMED))
    other = yard.tenant()
    for call in (
        lambda: yard.store.delete_webhook(one.id, tenant_id=other),
        lambda: yard.store.rotate_webhook(one.id, tenant_id=other, overlap_ms=0),
        lambda: yard.store.enable_webhook(one.id, tenant_id=other),
        lambda: yard.store.disable_webhook(one.id, tenant_id=other, because="not theirs"),
    ):
        with pytest.raises(NotFound):
            call()
    assert yard.store.webhooks(tenant_id=other) == []
    yard.store.delete_webhook(one.id, tenant_id=TENANT)
    assert [row.url for row in outbox(yard)] == [NAMED]
    with pytest.raises(Conflict):
        yard.store.delete_webhook(_for_named(yard).id, tenant_id=TENANT)


def test_the_numbers_of_events_are_those_of_states() -> None:
    ends: Sequence[State] = [state for state in State if state.is_terminal]
    assert [f"job.{state.word}" for state in ends] == [Event(state - State.SUCCEEDED).word for state in ends]
