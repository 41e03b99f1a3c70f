"""The dispatcher over real databases and brokers: fair order, a wiped broker, a leader that dies."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from prometheus_client import CollectorRegistry

from batchyard.broker import Broker
from batchyard.broker.redis_wire import client_url
from batchyard.jobs import Lane
from batchyard.settings import BrokerSettings, DatabaseSettings, Settings
from batchyard.store import migrate
from batchyard.store.base import JobStore, ModelVersion
from batchyard.store.open import database_url, open_store
from batchyard.telemetry import DispatcherMetrics, new_registry
from batchyard.ticketing import Allowance, ControlLink, TicketPublisher, queue_names
from batchyard_producer.dispatcher import Dispatcher, Timing
from tests.services.fleet import Consumer, add_model, consuming, submit, until


@dataclass(frozen=True)
class Yard:
    """A database, a broker and one model with its queue."""

    settings: Settings
    store: JobStore
    broker: Broker
    version: ModelVersion

    @property
    def queue_id(self) -> int:
        return self.version.queue_ids[Lane.FIRM]

    @property
    def url(self) -> str:
        return self.settings.broker.url


PAIRS: Mapping[str, tuple[str, str]] = {
    "sqlite+valkey": ("sqlite", "valkey_url"),
    "postgres+rabbitmq": ("postgres_database", "rabbitmq_url"),
}


@pytest.fixture(params=PAIRS)
def yard(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Yard]:
    database, broker_fixture = PAIRS[request.param]
    create: Callable[[], str] = (lambda: "sqlite") if database == "sqlite" else request.getfixturevalue(database)
    url = create()
    migrate.upgrade(database_url(url, state_dir=tmp_path))
    settings = Settings(
        state_dir=tmp_path,
        database=DatabaseSettings(url=url),
        broker=BrokerSettings(url=request.getfixturevalue(broker_fixture)),
    )
    store = open_store(url, state_dir=tmp_path)
    broker = Broker(settings.broker.url)
    yield Yard(settings, store, broker, add_model(store, f"m{os.urandom(6).hex()}"))
    broker.close()
    store.close()


@contextmanager
def dispatching(yard: Yard, *, timing: Timing | None = None) -> Iterator[tuple[Dispatcher, CollectorRegistry]]:
    registry = new_registry()
    dispatcher = Dispatcher(
        yard.store, yard.broker, yard.settings, metrics=DispatcherMetrics(registry), timing=timing or Timing()
    )
    dispatcher.start()
    try:
        yield dispatcher, registry
    finally:
        dispatcher.close()


def ticketed(registry: CollectorRegistry) -> float:
    reasons = ("window", "straggler", "requeued", "allowance")
    return sum(registry.get_sample_value("batchyard_ticketed_jobs_total", {"reason": r}) or 0 for r in reasons)


def test_jobs_of_several_tenants_go_in_fair_order(yard: Yard) -> None:
    heavy = yard.store.create_tenant("heavy", weight=2.0).id
    jobs = {
        1: set(submit(yard.store, yard.queue_id, 3000)),
        heavy: set(submit(yard.store, yard.queue_id, 6000, tenant_id=heavy)),
    }
    low = set(submit(yard.store, yard.queue_id, 500, priority=2))
    with (
        dispatching(yard) as (_, registry),
        consuming(yard.store, yard.url, yard.version, yard.queue_id) as consumer,
    ):
        until(lambda: len(consumer.claimed) == 9500, seconds=40)
        half = consumer.ticketed[:4000]
        assert len(jobs[heavy].intersection(half)) == pytest.approx(2 * len(jobs[1].intersection(half)), rel=0.1)
        assert len(low.intersection(half)) == pytest.approx(400, abs=60)
        for members in (*jobs.values(), low):
            order = [job_id for job_id in consumer.ticketed if job_id in members]
            assert order == sorted(order)
        assert len(set(consumer.claimed)) == 9500
        assert ticketed(registry) <= 1.1 * 9500
    assert yard.store.backlog() == yard.store.recount()


def test_a_wiped_broker_costs_a_delay_and_no_job(yard: Yard) -> None:
    ids = submit(yard.store, yard.queue_id, 5000)
    with (
        dispatching(yard, timing=Timing(retry=1.0)),
        consuming(yard.store, yard.url, yard.version, yard.queue_id, takes=False) as consumer,
    ):
        name = queue_names([yard.version])[yard.queue_id]
        until(lambda: yard.broker.depth(name) > 0)
        wipe(yard, name)
        consumer.take_tickets()
        until(lambda: len(consumer.claimed) == 5000, seconds=30)
        assert sorted(consumer.claimed) == list(ids)


def wipe(yard: Yard, name: str) -> None:
    if yard.url.startswith("redis"):
        with redis.Redis.from_url(client_url(yard.url)) as client:
            client.flushall()
        return
    wire: Any = Broker(yard.url)._wire
    wire._use(lambda channel: channel.queue_delete(name))
    wire.close()


LEAD_AND_HANG = """
import sys, time
from pathlib import Path
from batchyard.broker import Broker
from batchyard.settings import *
from batchyard.store.open import open_store
from batchyard_producer.dispatcher import Dispatcher, Timing
state, database, broker = sys.argv[1:]
settings = Settings(state_dir=Path(state), database=DatabaseSettings(url=database), broker=BrokerSettings(url=broker))
store = open_store(database, state_dir=Path(state))
dispatcher = Dispatcher(store, Broker(broker), settings, timing=Timing(lease=1.5, lead=0.3))
dispatcher.start()
while not dispatcher.is_leader:
    time.sleep(0.01)
print("leads", flush=True)
time.sleep(60)
"""


def test_when_the_leader_dies_another_takes_over(yard: Yard) -> None:
    arguments = [str(yard.settings.state_dir), yard.settings.database.url, yard.url]
    with (
        subprocess.Popen([sys.executable, "-c", LEAD_AND_HANG, *arguments], stdout=subprocess.PIPE) as first,
        consuming(yard.store, yard.url, yard.version, yard.queue_id) as consumer,
    ):
        assert first.stdout is not None
        try:
            assert first.stdout.readline() == b"leads\n"
            with dispatching(yard, timing=Timing(lease=1.5, lead=0.3)) as (second, _):
                until(lambda: second.is_leader is False)
                submit(yard.store, yard.queue_id, 1000)
                until(lambda: len(consumer.claimed) == 1000)
                first.send_signal(signal.SIGKILL)
                submit(yard.store, yard.queue_id, 1000)
                until(lambda: len(consumer.claimed) == 2000)
                assert second.is_leader
        finally:
            first.kill()


def test_an_idle_queue_is_ticketed_by_whoever_submits(yard: Yard) -> None:
    names = queue_names([yard.version])
    with (
        dispatching(yard) as (dispatcher, registry),
        consuming(yard.store, yard.url, yard.version, yard.queue_id) as consumer,
    ):
        publisher = TicketPublisher(yard.broker, names=names.get, link=dispatcher.link, wake=dispatcher.notify)
        publisher.start()
        until(lambda: dispatcher.allowance.take(yard.queue_id, 1))
        for done in range(1, 101):
            allowed = dispatcher.allowance.take(yard.queue_id, 1)
            ids = submit(yard.store, yard.queue_id, 1, ticketed=allowed)
            if allowed:
                publisher.offer(yard.queue_id, ids)
            else:
                dispatcher.notify([yard.queue_id])
            until(partial(claimed, consumer, done))
        assert len(consumer.ticketed) <= 110
        assert ticketed(registry) < 50, "the leader had little to do"
        publisher.close()


def claimed(consumer: Consumer, jobs: int) -> bool:
    return len(consumer.claimed) == jobs


def test_a_second_process_gets_its_part_of_the_allowance(yard: Yard) -> None:
    broker = Broker(yard.url)
    away = ControlLink(broker, Allowance())
    away.start()
    with dispatching(yard), consuming(yard.store, yard.url, yard.version, yard.queue_id):
        assert away.wait_connected(timeout_seconds=5)

        def granted() -> bool:
            away.want([yard.queue_id], waiting=True)
            return away.allowance.take(yard.queue_id, 100)

        until(granted)
    away.close()
    broker.close()
