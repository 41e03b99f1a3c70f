"""The dispatcher over a real store in memory and kombu's broker within the process, one round at a time."""

import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker import Broker, decode_ticket
from batchyard.errors import BrokerDown, Unavailable
from batchyard.exposition import snapshot
from batchyard.jobs import ClaimedJob, ErrorInfo, Lane, Outcome, PayloadReference, State
from batchyard.settings import DatabaseSettings, QueueSettings, RetentionSettings, Settings
from batchyard.store.base import BulkConfig, JobStore, ModelVersion, PayloadInfo
from batchyard.telemetry import DispatcherMetrics, new_registry
from batchyard.testing import memory_store
from batchyard.ticketing import Allowance, ControlLink, queue_names
from batchyard_producer.dispatcher import Dispatcher, Timing
from tests.services.fleet import LEASE_MS, Consumer, add_model, consuming, submit, until

URL = "memory://"
EVERY_ROUND = Timing(fleet=0, idle=0, straggle=0, reap=0, promote=0, expire=0, sweep=0, fold_idle=0, lead=0, retry=0.6)


class Clock:
    """The database's and the dispatcher's clock in one."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def ms(self) -> int:
        return 1_763_694_000_000 + round(self.now * 1000)


class Rig:
    """One queue, its store, its broker, and a dispatcher that does a round when told to."""

    def __init__(self, clock: Clock, settings: Settings) -> None:
        self.clock = clock
        self.store: JobStore = memory_store(clock=clock.ms)
        self.broker = Broker(URL)
        self.version: ModelVersion = add_model(self.store, f"m{uuid.uuid4().hex}")
        self.queue_id = self.version.queue_ids[Lane.FIRM]
        self.name = queue_names([self.version])[self.queue_id]
        self.registry = new_registry()
        self.settings = settings
        self.dispatcher = self.another()

    def another(self, *, store: Any = None, broker: Any = None) -> Dispatcher:
        return Dispatcher(
            store or self.store,
            broker or self.broker,
            self.settings,
            metrics=DispatcherMetrics(self.registry if not hasattr(self, "dispatcher") else new_registry()),
            timing=EVERY_ROUND,
            clock=self.clock,
        )

    def round(self, *, seconds: float = 0.3) -> None:
        """Let time pass, then do a round."""
        self.clock.now += seconds
        self.dispatcher.round()

    def submit(self, jobs: int, **more: Any) -> Sequence[int]:
        return submit(self.store, self.queue_id, jobs, **more)

    def ticket(self) -> Sequence[int]:
        """Take the next ticket out of the broker; the ids in it, none where there is none."""
        wire: Any = self.broker._wire
        raw = wire._use(lambda channel: channel.basic_get(self.name, no_ack=True))
        if raw is None:
            return []
        ticket = decode_ticket(raw.body)
        assert ticket is not None
        assert ticket.queue_id == self.queue_id
        return ticket.ids

    def tickets(self) -> list[int]:
        """Take all tickets out of the broker and return their ids, in order."""
        return [job_id for ids in iter(self.ticket, []) for job_id in ids]

    def sample(self, name: str, **labels: str) -> float:
        return float(self.registry.get_sample_value(name, labels) or 0)

    def ticketed(self) -> float:
        """Jobs that the dispatcher has ticketed, as often as it did."""
        return sum(self.sample("batchyard_ticketed_jobs_total", reason=reason) for reason in ("window", "straggler"))

    def consumer(self) -> Consumer:
        return Consumer(self.store, URL, self.version, self.queue_id, takes=False)


class SlowConsumer:
    """Fetches a few tickets ahead and claims one job from them at a time, each of which takes a second."""

    def __init__(self, rig: Rig, *, prefetch: int) -> None:
        self.rig = rig
        self.prefetch = prefetch
        self.seen: list[int] = []
        """Ids in the order of their tickets."""
        self.done = 0
        self._registered = rig.consumer()
        self._held: deque[list[int]] = deque()
        self._running: list[ClaimedJob] = []
        self._ends_at = 0.0

    def leave(self) -> None:
        """Be gone, with tickets in hand."""
        self._registered.close()

    def step(self) -> None:
        store, owner, now = self.rig.store, self._registered.owner, self.rig.clock.now
        store.renew(owner, lease_ms=LEASE_MS, state="ready", stats={})
        while len(self._held) < self.prefetch and (ids := self.rig.ticket()):
            self.seen += ids
            self._held.append(list(ids))
        if self._running and now >= self._ends_at:
            self.done += len(store.finish([Outcome(job, State.SUCCEEDED, b"1") for job in self._running], owner=owner))
            self._running = []
        while self._held and not self._running:
            self._running = store.claim([(self.rig.queue_id, [self._held[0].pop(0)])], owner=owner)
            self._ends_at = now + 1.0
            if not self._held[0]:
                self._held.popleft()


def working(consumers: Sequence[SlowConsumer], *, seconds: float) -> None:
    """Let time pass in which the consumers and the dispatcher do their work."""
    for _ in range(round(seconds / 0.25)):
        for consumer in consumers:
            consumer.step()
        consumers[0].rig.round(seconds=0.25)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path, queues=QueueSettings(window_seconds=0.2, lease_seconds=2))


@pytest.fixture
def rig(settings: Settings) -> Iterator[Rig]:
    rig = Rig(Clock(), settings)
    yield rig
    rig.broker.close()
    rig.store.close()


def test_nothing_is_ticketed_without_a_live_consumer(rig: Rig) -> None:
    rig.submit(10)
    rig.round()
    assert rig.dispatcher.is_leader
    assert rig.tickets() == []
    consumer = rig.consumer()
    rig.round()
    assert len(rig.tickets()) == 10
    rig.clock.now += LEASE_MS / 1000 + 1
    rig.submit(10)
    rig.round()
    assert rig.tickets() == [], "its lease is over"
    consumer.close()


def test_a_window_is_filled_and_refilled_in_order(rig: Rig) -> None:
    ids = list(rig.submit(2000))
    rig.consumer()
    rig.round()
    first = rig.tickets()
    assert first == ids[:256]
    rig.round(seconds=0.01)
    second = rig.tickets()
    assert len(second) > 256, "what ran dry gets a larger window"
    assert first + second == ids[: 256 + len(second)]
    rig.round(seconds=0.01)
    third = rig.tickets()
    rig.round(seconds=0.01)
    assert first + second + third + rig.tickets() == ids


def test_a_full_window_is_left_alone(rig: Rig) -> None:
    rig.submit(2000)
    rig.consumer()
    for _ in range(5):
        rig.round()
    assert rig.broker.depth(rig.name) == 2


def test_tenants_share_the_window(rig: Rig) -> None:
    other = rig.store.create_tenant("other").id
    crowd = set(rig.submit(5000))
    few = set(rig.submit(100, tenant_id=other))
    rig.consumer()
    rig.round()
    ticketed = rig.tickets()
    assert few < set(ticketed)
    assert len(crowd & set(ticketed)) == 156


def test_priorities_go_first_with_a_reserve(rig: Rig) -> None:
    low = set(rig.submit(2000, priority=1))
    high = set(rig.submit(2000, priority=9))
    rig.consumer()
    rig.round()
    ticketed = rig.tickets()
    assert len(high & set(ticketed)) == pytest.approx(230, abs=17)
    assert len(low & set(ticketed)) == pytest.approx(26, abs=17)


def test_a_paused_queue_gets_no_tickets(rig: Rig) -> None:
    rig.store.set_queue_paused(rig.queue_id, paused=True)
    ids = rig.submit(5)
    rig.consumer()
    rig.round()
    assert rig.tickets() == []
    rig.store.set_queue_paused(rig.queue_id, paused=False)
    rig.round()
    assert rig.tickets() == list(ids)


def test_lost_tickets_are_published_again_later_and_later(rig: Rig) -> None:
    ids = list(rig.submit(5))
    rig.consumer()
    rig.round()
    assert rig.tickets() == ids
    again = []
    for step in range(100):
        rig.round(seconds=0.1)
        if lost := rig.tickets():
            assert lost == ids
            again.append(step)
    pauses = [later - earlier for earlier, later in pairwise(again)]
    assert 5 <= again[0] <= 12
    assert len(again) in {3, 4, 5}
    assert pauses == sorted(pauses)
    assert rig.sample("batchyard_ticketed_jobs_total", reason="straggler") == 5 * len(again)


def test_tickets_are_as_small_as_the_model_is_slow(rig: Rig) -> None:
    rig.store.report_speed(rig.version.id, units_per_byte=1.0, seconds_per_unit=0.1)
    ids = list(rig.submit(12))
    rig.consumer()
    rig.round()
    assert [rig.ticket() for _ in range(4)] == [ids[:5], ids[5:10], ids[10:], []]


def test_a_slow_consumer_is_left_in_peace_with_the_tickets_it_has(rig: Rig) -> None:
    ids = list(rig.submit(700))
    consumer = SlowConsumer(rig, prefetch=4)
    working([consumer], seconds=6)
    assert consumer.seen == ids[:512], "nobody knows yet how slow it is"
    rig.store.report_speed(rig.version.id, units_per_byte=1.0, seconds_per_unit=1.0)
    another = SlowConsumer(rig, prefetch=1)
    working([consumer, another], seconds=30)
    assert (consumer.done, another.done) == (35, 29)
    assert rig.ticketed() == 700, "each of them once"
    consumer.leave()
    working([another], seconds=3)
    assert rig.ticketed() > 800, "what was lost with it is soon ticketed again"


def test_what_submitters_ticketed_of_a_slow_model_is_not_ticketed_again(rig: Rig) -> None:
    rig.store.report_speed(rig.version.id, units_per_byte=1.0, seconds_per_unit=1.0)
    consumer = SlowConsumer(rig, prefetch=1)
    rig.round()
    for _ in range(30):
        ids = rig.submit(4, ticketed=True)
        rig.broker.publish(rig.name, rig.queue_id, ids, ticket_jobs=1)
        working([consumer], seconds=1)
    assert consumer.done > 25
    assert rig.ticketed() == 0


def test_a_wiped_broker_is_filled_again_in_order(rig: Rig) -> None:
    ids = list(rig.submit(3000))
    rig.consumer()
    for _ in range(8):
        rig.round(seconds=0.01)
        rig.tickets()
    rig.round(seconds=0.01)
    assert rig.tickets() == []
    seen: list[int] = []
    for _ in range(30):
        rig.round(seconds=0.1)
        seen += rig.tickets()
    assert set(ids) == set(seen)
    assert seen[:3000] == ids


def test_a_job_that_turns_up_behind_the_cursor_is_found_soon(rig: Rig) -> None:
    rig.consumer()
    bulk = rig.store.create_bulk(BulkConfig(tenant_id=1, queue_id=rig.queue_id, defaults=b"{}"))
    late = rig.submit(1, bulk_id=bulk.id)
    rig.store.pause_bulk(bulk.id, tenant_id=1, paused=True)
    rig.round()
    later = rig.submit(1)
    rig.round()
    assert rig.tickets()[-1:] == list(later)
    rig.store.pause_bulk(bulk.id, tenant_id=1, paused=False)
    for _ in range(4):
        rig.round()
    assert list(late) == [job_id for job_id in rig.tickets() if job_id in late]


def test_what_its_submitter_ticketed_is_passed_over_for_a_while(rig: Rig) -> None:
    own = rig.submit(3, ticketed=True)
    ours = rig.submit(3)
    rig.consumer()
    rig.round()
    assert rig.tickets() == list(ours)
    for _ in range(5):
        rig.round()
    assert set(own) <= set(rig.tickets()), "its ticket seems to be lost"


def test_an_idle_queue_is_allowed_away_and_taken_back(rig: Rig) -> None:
    allowance = rig.dispatcher.allowance
    assert not allowance.take(rig.queue_id, 1)
    rig.consumer()
    rig.round()
    assert allowance.take(rig.queue_id, 200)
    assert not allowance.take(rig.queue_id, 100)
    rig.dispatcher.notify([rig.queue_id])
    assert not allowance.take(rig.queue_id, 1), "at once, before any round"
    rig.round()
    assert allowance.take(rig.queue_id, 1)
    rig.submit(1000)
    rig.round()
    assert not allowance.take(rig.queue_id, 1)


def test_nobody_is_allowed_anything_without_a_consumer(rig: Rig) -> None:
    consumer = rig.consumer()
    rig.round()
    assert rig.dispatcher.allowance.take(rig.queue_id, 1)
    consumer.close()
    rig.round()
    rig.clock.now += 2
    assert not rig.dispatcher.allowance.take(rig.queue_id, 1)


def test_other_processes_share_the_allowance(rig: Rig) -> None:
    rig.consumer()
    away = Allowance()
    member = ControlLink(rig.broker, away)
    member.start()
    rig.dispatcher.link.start()
    assert member.wait_connected(timeout_seconds=5)
    assert rig.dispatcher.link.wait_connected(timeout_seconds=5)
    rig.round()
    member.want([rig.queue_id], waiting=True)
    until(lambda: rig.dispatcher._windows._members)

    def granted() -> bool:
        rig.round(seconds=1)
        return away.take(rig.queue_id, 128)

    until(granted)
    assert not rig.dispatcher.allowance.take(rig.queue_id, 129)
    member.close()
    rig.dispatcher.link.close()


def test_retries_that_fall_due_are_ticketed_at_once(rig: Rig) -> None:
    ids = rig.submit(2)
    consumer = rig.consumer()
    rig.round()
    rig.tickets()
    claimed = rig.store.claim([(rig.queue_id, list(ids))], owner=consumer.owner)
    busy = ErrorInfo("model_busy", "later", retryable=True)
    failed = [Outcome(job, State.WAITING, error=busy, retry_in_ms=5000) for job in claimed]
    rig.store.finish(failed, owner=consumer.owner)
    rig.round()
    assert rig.tickets() == []
    rig.clock.now += 5
    rig.round()
    assert sorted(rig.tickets()) == sorted(ids)
    assert rig.sample("batchyard_jobs_requeued_total", reason="retry") == 2


def test_a_dead_consumer_is_reaped_only_after_a_lease_of_answers(rig: Rig) -> None:
    ids = rig.submit(2)
    dead = rig.consumer()
    rig.round()
    rig.tickets()
    assert len(rig.store.claim([(rig.queue_id, list(ids))], owner=dead.owner)) == 2
    rig.clock.now += LEASE_MS / 1000 + 1
    rig.consumer()
    rig.round()
    assert rig.tickets() == [], "after a silence, as after an outage, every consumer gets a lease's time"
    for _ in range(8):
        rig.round()
    assert sorted(rig.tickets()) == sorted(ids)
    assert rig.sample("batchyard_jobs_requeued_total", reason="reaped") == 2


def test_deadlines_expire(rig: Rig) -> None:
    rig.submit(3, deadline_ms=rig.store.now_ms() + 1000)
    rig.round()
    rig.round(seconds=1)
    assert rig.sample("batchyard_jobs_expired_total") == 3
    assert {row.state for row in rig.store.backlog() if row.jobs} == {State.EXPIRED}


@pytest.mark.parametrize("by", ["age", "bytes"])
def test_finished_jobs_are_retired(rig: Rig, settings: Settings, tmp_path: Path, by: str) -> None:
    keep = (
        RetentionSettings(keep_seconds=120) if by == "age" else RetentionSettings(keep_seconds=9e9, keep_bytes=10_000)
    )
    rig.settings = Settings(state_dir=tmp_path, queues=settings.queues, retention=keep)
    rig.dispatcher = rig.another()
    ids = rig.submit(1200)
    consumer = rig.consumer()
    claimed = rig.store.claim([(rig.queue_id, list(ids))], owner=consumer.owner)
    rig.store.finish([Outcome(job, State.SUCCEEDED, b"x" * 100) for job in claimed], owner=consumer.owner)
    for _ in range(5):
        rig.round()
    assert len(rig.store.get_jobs(list(ids[:10]), tenant_id=1)) == 10, "too young"
    rig.clock.now += 121
    for _ in range(20):
        rig.round(seconds=1)
    kept = rig.store.stored_bytes()
    assert kept == 0 if by == "age" else kept <= 10_000
    assert rig.store.retired_among(list(ids[:1]), tenant_id=1) == [ids[0]]


def test_payloads_that_jobs_refer_to_count_as_bytes_kept(rig: Rig, settings: Settings, tmp_path: Path) -> None:
    keep = RetentionSettings(keep_seconds=9e9, keep_bytes=10_000)
    rig.settings = Settings(state_dir=tmp_path, queues=settings.queues, retention=keep)
    rig.dispatcher = rig.another()

    def upload(number: int, *, size: int) -> PayloadReference:
        info = PayloadInfo(id=number, tenant_id=1, content_type="x", size=size, digest=b"", location=f"1/{number}")
        rig.store.expect_payload(number, location=info.location)
        rig.store.add_payload(info)
        return PayloadReference(index=0, payload_id=number, pointer="/input")

    upload(1, size=1_000_000)
    (small,) = rig.submit(1, payloads=[upload(2, size=9_000)])
    rig.store.cancel(small, tenant_id=1)
    rig.clock.now += 121
    for _ in range(5):
        rig.round(seconds=1)
    assert len(rig.store.get_jobs([small], tenant_id=1)) == 1, "to delete it would not free what no job refers to"
    rig.submit(1, payloads=[upload(3, size=2_000)])
    for _ in range(5):
        rig.round(seconds=61)
    assert rig.store.get_jobs([small], tenant_id=1) == []
    assert rig.store.stored_bytes() == 2_000 + len(b'"x"')


def test_leadership_passes_on(rig: Rig) -> None:
    second = rig.another()
    rig.round()
    second.round()
    assert (rig.dispatcher.is_leader, second.is_leader) == (True, False)
    rig.clock.now += EVERY_ROUND.lease + 1
    second.round()
    rig.dispatcher.round()
    assert (rig.dispatcher.is_leader, second.is_leader) == (False, True)
    second.resign()
    rig.dispatcher.round()
    assert rig.dispatcher.is_leader


class Failing:
    """Passes everything on to the real part, or raises."""

    def __init__(self, part: object) -> None:
        self.part = part
        self.fault: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.part, name)
        return self._guarded(value) if callable(value) and name != "now_ms" else value

    def _guarded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            if self.fault is not None:
                raise self.fault
            return method(*args, **more)

        return call


@pytest.mark.parametrize("fault", [Unavailable("away"), RuntimeError("a bug")])
def test_a_database_that_fails_is_reported_once_and_survived(
    rig: Rig, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    store = Failing(rig.store)
    rig.dispatcher = rig.another(store=store)
    rig.consumer()
    rig.round()
    store.fault = fault
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            rig.round()
    assert [record.message for record in caplog.records] == ["dispatcher_failed"]
    store.fault = None
    ids = rig.submit(3)
    with caplog.at_level(logging.INFO):
        rig.round()
    assert rig.tickets() == list(ids)
    assert caplog.records[-1].message == "dispatcher_recovered"


def test_a_broker_that_fails_stops_no_chore_and_no_allowance_stands(rig: Rig) -> None:
    broker = Failing(rig.broker)
    rig.dispatcher = rig.another(broker=broker)
    rig.consumer()
    rig.round()
    assert rig.dispatcher.allowance.take(rig.queue_id, 1)
    broker.fault = BrokerDown("away")
    ids = rig.submit(3)
    rig.submit(1, deadline_ms=rig.store.now_ms() + 100)
    rig.round()
    assert not rig.dispatcher.allowance.take(rig.queue_id, 1)
    assert any(row.state is State.EXPIRED for row in rig.store.backlog())
    broker.fault = None
    rig.round(seconds=3)
    assert rig.tickets() == list(ids)


def test_postgres_is_folded_at_once_and_sqlite_seldom(tmp_path: Path) -> None:
    clock = Clock()
    folds: dict[str, int] = {}
    for url in ("sqlite", "postgresql+psycopg://h/d"):
        rig = Rig(clock, Settings(state_dir=tmp_path, database=DatabaseSettings(url=url)))
        store = Failing(rig.store)
        count: list[int] = []
        store.fold = lambda *, limit, count=count: count.append(limit) or 0  # type: ignore[attr-defined]
        dispatcher = Dispatcher(store, rig.broker, rig.settings, timing=Timing(fold_idle=2.0), clock=clock)
        for _ in range(100):
            clock.now += 0.03
            dispatcher.hinted([1])
            dispatcher.round()
        folds[url] = len(count)
        rig.broker.close()
        rig.store.close()
    assert folds["sqlite"] == 2
    assert folds["postgresql+psycopg://h/d"] == 100


def test_it_runs_in_a_thread_and_costs_nearly_nothing_when_idle(rig: Rig, settings: Settings) -> None:
    store = memory_store()
    version = add_model(store, f"m{uuid.uuid4().hex}")
    queue_id = version.queue_ids[Lane.FIRM]
    dispatcher = Dispatcher(store, rig.broker, settings)
    dispatcher.start()
    with consuming(store, URL, version, queue_id) as consumer:
        until(lambda: dispatcher.is_leader)
        ids = submit(store, queue_id, 1000)
        dispatcher.notify([queue_id])
        until(lambda: len(consumer.claimed) == 1000)
        assert consumer.claimed == list(ids)
        assert consumer.ticketed == list(ids)
    began = time.monotonic()
    dispatcher.close()
    assert time.monotonic() - began < 2
    assert dispatcher.is_leader is False
    store.close()


def test_metrics_are_snapshots_of_numbers(rig: Rig) -> None:
    rig.consumer()
    rig.submit(300)
    rig.round()
    assert rig.sample("batchyard_leader") == 1
    assert rig.sample("batchyard_tickets_published_total", reason="window") == 2
    assert rig.sample("batchyard_ticketed_jobs_outstanding", model=rig.version.name, lane="firm") == 256
    assert snapshot(rig.registry)
