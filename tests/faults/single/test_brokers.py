"""A broker that stops, swallows, fills up, refuses writes or dies under a running system, and tickets of every kind."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import kombu
import pytest
import redis

from batchyard.broker import Broker
from batchyard.jobs import Lane, State
from tests.faults import servers
from tests.faults.single.factors import shortened
from tests.faults.single.system import BLOCKED_SECONDS, System, system
from tests.services.api.process import started
from tests.services.consumers.yard import until

OUTAGE_SECONDS = 4.0
RESUME_SECONDS = 15.0


@pytest.fixture(scope="module")
def valkey() -> Iterator[servers.Valkey]:
    with servers.valkey() as server:
        yield server


@pytest.fixture(scope="module")
def running(valkey: servers.Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with system(tmp_path_factory.mktemp("brokers"), broker_url=valkey.url) as made:
        made.finish(made.accepted(*range(100)))
        yield made


@contextmanager
def stopped(valkey: servers.Valkey) -> Iterator[None]:
    valkey.process.pause()
    yield
    valkey.process.go_on()


@contextmanager
def swallowing(valkey: servers.Valkey) -> Iterator[None]:
    """Packets are dropped: connections stand and nothing comes through."""
    valkey.proxy.hold_up()
    yield
    valkey.proxy.let_through()


@contextmanager
def full(valkey: servers.Valkey) -> Iterator[None]:
    valkey.refuse_writes(refuse=True)
    yield
    valkey.refuse_writes(refuse=False)


@contextmanager
def read_only(valkey: servers.Valkey) -> Iterator[None]:
    """As after a fail-over: what was the primary is a replica, of one that does not answer."""
    with redis.Redis(unix_socket_path=valkey.direct.removeprefix("redis+socket://")) as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        yield
        client.execute_command("REPLICAOF", "NO", "ONE")


@contextmanager
def dead(valkey: servers.Valkey) -> Iterator[None]:
    """Killed without persistence; it comes back empty."""
    valkey.process.end()
    yield
    valkey.process.start()


@pytest.mark.parametrize("trouble", [stopped, swallowing, full, read_only, dead])
def test_jobs_go_on_without_the_broker_and_nobody_waits_for_it(
    running: System, valkey: servers.Valkey, trouble: Callable[[servers.Valkey], Any]
) -> None:
    seconds = shortened("outage", OUTAGE_SECONDS, stated=600.0 if trouble is dead else 60.0)
    with trouble(valkey), running.stays_alive():
        ids, slowest = running.slowest_answers(seconds=seconds)
        assert slowest < BLOCKED_SECONDS
        running.finish(ids, timeout=RESUME_SECONDS)
    began = time.monotonic()
    until(running.takes_tickets, timeout=RESUME_SECONDS, yard=running.place)
    print(f"consuming again after {time.monotonic() - began:.1f} s")
    running.finish(running.accepted(*range(100)), timeout=RESUME_SECONDS)
    assert {view.attempt for view in running.place.view(ids)} == {1}
    running.settle()


def test_what_was_committed_and_not_published_is_found_within_ten_seconds(
    valkey: servers.Valkey, tmp_path: Path
) -> None:
    """The API is killed between the commit and the tickets, while the broker does not answer."""
    with system(tmp_path, broker_url=valkey.url) as running:
        running.finish(running.accepted(*range(10)))
        with stopped(valkey):
            ids = running.accepted(*range(500))
            running.api.running.kill()
            running.api.end()
        with started(running.place.folder):
            until(lambda: running.place.states(ids).get(State.QUEUED, 0) == 0, timeout=10, yard=running.place)
            running.finish(ids)
        assert running.place.states(ids) == {State.SUCCEEDED: 500}


@pytest.mark.parametrize("broker_url", ["valkey_url", "rabbitmq_url"])
def test_tickets_a_hundred_times_in_any_order_and_of_any_kind(
    broker_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url: str = request.getfixturevalue(broker_url)
    with system(tmp_path, broker_url=url) as running:
        place = running.place
        queue_id, other = (
            place.versions["noop@1"].queue_ids[Lane.FIRM],
            place.versions["noop@1"].queue_ids[Lane.TOLERANT],
        )
        name = place.broker_name(queue_id)
        ended = running.accepted(*range(100))
        running.finish(ended)
        ids = place.submit("noop@1", list(range(400)), tickets=False)
        foreign = place.submit("noop@1", list(range(100)), lane=Lane.TOLERANT, tickets=False)
        copies = [ids[n : n + 20] for n in range(0, 400, 20)] * 100
        random.Random(3).shuffle(copies)
        with closing(Broker(url)) as broker:
            for piece in copies:
                broker.publish(name, queue_id, random.Random(piece[0]).sample(piece, len(piece)))
            broker.publish(name, queue_id, [*ended, *foreign, 7])
            broker.publish(name, other, ids)
        send_raw(url, name, b"\x80\x04" + b"x" * 10_000_000)
        running.finish([*ids, *foreign])
        until(lambda: place.broker.depth(name) == 0, yard=place)
        assert {view.attempt for view in place.view([*ids, *foreign, *ended])} == {1}
        assert sum(row.jobs for row in place.store.usage()) == 600
        assert place.workers[0].poll() is None


def send_raw(url: str, name: str, body: bytes) -> None:
    with kombu.Connection(url) as connection, connection.channel() as channel:
        kombu.Producer(channel).publish(
            body, routing_key=name, content_type="application/x-python-serialize", content_encoding="binary"
        )
