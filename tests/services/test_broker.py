"""What every broker does, the one within a process included: one suite over all of them."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kombu
import pytest
import redis

from batchyard.broker import Broker, Hints, Ticket, decode_ticket
from batchyard.broker.application import celery_app, consumer_queue
from batchyard.broker.embedded import EmbeddedValkey, resolve_broker_url, socket_path
from batchyard.broker.redis_wire import client_url
from batchyard.errors import BrokerDown, ConfigurationError, Conflict
from batchyard.settings import BrokerSettings, Settings
from tests.servers import Server, ServerUnavailable, rabbitmq_server, redis_server, valkey_server

STARTERS = {"valkey": valkey_server, "redis": redis_server, "rabbitmq": rabbitmq_server}


@dataclass(frozen=True)
class Subject:
    """A broker under test; `server` is None for the one within the process."""

    url: str
    server: Server | None


@pytest.fixture(scope="module", params=["memory", *STARTERS])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    if request.param == "memory":
        yield Subject("memory://", None)
        return
    with ExitStack() as stack:
        try:
            server = stack.enter_context(STARTERS[request.param]())
        except ServerUnavailable as missing:
            pytest.skip(str(missing))
        yield Subject(server.url, server)


@pytest.fixture
def broker(subject: Subject) -> Iterator[Broker]:
    broker = Broker(subject.url)
    yield broker
    broker.close()


@pytest.fixture
def name() -> str:
    return f"batchyard.{uuid.uuid4().hex}@1.firm"


def until(condition: Callable[[], object], *, seconds: float = 10) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "did not come true in time"
        time.sleep(0.005)


def consume(url: str, name: str, *, messages: int) -> list[Any]:
    """Read as the consumers do: Celery's connection, kombu's consumer, raw bodies."""
    got: list[Any] = []

    def take(message: Any) -> None:
        message.ack()
        got.append(message)

    with celery_app(url).connection_for_read() as connection:
        channel = connection.channel()
        consumer = kombu.Consumer(channel, queues=[consumer_queue(name, url)], on_message=take)
        consumer.qos(prefetch_count=4)
        with consumer:
            give_up = time.monotonic() + 10
            while len(got) < messages and time.monotonic() < give_up:
                with suppress(TimeoutError):
                    connection.drain_events(timeout=0.2)
    return got


def test_tickets_arrive_whole_and_in_order(subject: Subject, broker: Broker, name: str) -> None:
    ids = list(range(1 << 60, (1 << 60) + 300))
    assert broker.publish(name, 7, ids) == 3
    assert broker.publish(name, 7, range(1, 3), ticket_jobs=1) == 2
    tickets = [decode_ticket(message.body) for message in consume(subject.url, name, messages=5)]
    assert tickets == [Ticket(7, piece) for piece in (ids[:128], ids[128:256], ids[256:], [1], [2])]


def test_any_kombu_consumer_reads_a_ticket(subject: Subject, broker: Broker, name: str) -> None:
    broker.publish(name, 7, [5, 6])
    (message,) = consume(subject.url, name, messages=1)
    assert message.payload[:2] == [[], {"queue": 7, "ids": [5, 6]}]
    assert message.headers["task"] == "batchyard.ticket"
    assert message.content_type == "application/json"


def test_several_queues_in_one_call(subject: Subject, broker: Broker, name: str) -> None:
    assert broker.publish_many([(name, [Ticket(1, [1])]), (f"{name}b", [Ticket(2, [2])]), (f"{name}c", [])]) == 2
    until(lambda: broker.depths([name, f"{name}b", f"{name}c"]) == [1, 1, 0])
    assert [decode_ticket(m.body) for m in consume(subject.url, f"{name}b", messages=1)] == [Ticket(2, [2])]


def test_depth_counts_the_tickets_that_wait(subject: Subject, broker: Broker, name: str) -> None:
    assert broker.depth(name) == 0
    broker.declare(name)
    assert broker.depth(name) == 0
    broker.publish(name, 1, range(1, 1000))
    until(lambda: broker.depth(name) == 8)
    consume(subject.url, name, messages=8)
    until(lambda: broker.depth(name) == 0)


def test_hints_reach_all_who_listen(broker: Broker) -> None:
    heard: list[list[int]] = []
    gaps: list[int] = []
    listeners = [Hints(broker, heard.append, on_gap=lambda: gaps.append(1)) for _ in range(3)]
    for listener in listeners:
        listener.start()
    assert all(listener.wait_connected(timeout_seconds=5) for listener in listeners)
    broker.hint([3, 1 << 62])
    broker.shout("batchyard.hints", b"not ids")
    broker.hint(range(1, 6000))
    until(lambda: len(heard) == 9)
    assert sorted(map(len, heard)) == [2, 2, 2, 1903, 1903, 1903, 4096, 4096, 4096]
    assert [3, 1 << 62] in heard
    assert len(gaps) == 3
    for listener in listeners:
        listener.close()
    broker.hint([1])


def test_a_listener_outlives_a_callback_that_raises(broker: Broker) -> None:
    heard: list[list[int]] = []

    def fail_first(ids: list[int]) -> None:
        heard.append(ids)
        if len(heard) == 1:
            raise RuntimeError("refused")

    listener = Hints(broker, fail_first)
    listener.start()
    assert listener.wait_connected(timeout_seconds=5)
    broker.hint([1])
    broker.hint([2])
    until(lambda: heard == [[1], [2]])
    listener.close()


def test_what_is_no_ticket_harms_no_consumer(subject: Subject, broker: Broker, name: str) -> None:
    broker.declare(name)
    if subject.url.startswith("redis"):
        # Whoever used kombu in this process before us does not choose the consumers' transport.
        assert kombu.Connection(subject.url).get_transport_cls().__module__ == "kombu.transport.redis"
        client = redis.Redis.from_url(client_url(subject.url))
        client.lpush(name, b"\x80\x04pickle", b"[]", b"{}", b"7", b'{"body": 1, "properties": {}}', b"x" * 10_000_000)
        client.close()
    with celery_app(subject.url).connection_for_write() as connection:
        producer = connection.Producer()
        producer.publish({"queue": 1, "ids": [1]}, serializer="json", routing_key=name, exchange="")
        producer.publish(
            b"\x80\x04K\x01.",
            content_type="application/x-python-serialize",
            content_encoding="binary",
            routing_key=name,
            exchange="",
        )
        producer.publish("x" * 10_000_000, serializer="json", routing_key=name, exchange="")
    broker.publish(name, 1, [9])
    messages = consume(subject.url, name, messages=4)
    assert [decode_ticket(message.body) for message in messages] == [None, None, None, Ticket(1, [9])]


def test_many_threads_share_one_broker(subject: Subject, broker: Broker, name: str) -> None:
    threads = [threading.Thread(target=lambda: [broker.publish(name, 1, [n + 1]) for n in range(20)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: broker.depth(name) == 160)


def test_a_wiped_broker_takes_tickets_again(subject: Subject, broker: Broker, name: str) -> None:
    broker.publish(name, 1, [1])
    if subject.url.startswith("redis"):
        client = redis.Redis.from_url(client_url(subject.url))
        client.flushall()
        client.close()
    else:
        with celery_app(subject.url).connection_for_write() as connection:
            channel = connection.default_channel
            _ = channel.queue_purge(name) if subject.server is None else channel.queue_delete(name)
    # Reading the depth is how the publisher learns that the queue has to be declared anew.
    assert broker.depth(name) == 0
    broker.publish(name, 1, [2])
    assert [decode_ticket(m.body) for m in consume(subject.url, name, messages=1)] == [Ticket(1, [2])]


@pytest.mark.parametrize("subject", STARTERS, indirect=True)
def test_a_broker_that_hangs_blocks_nobody(subject: Subject, broker: Broker, name: str) -> None:
    assert subject.server is not None
    broker.publish(name, 1, [1])
    until(lambda: broker.depth(name) == 1)
    os.killpg(subject.server.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        until(lambda: not succeeds(lambda: call(lambda: broker.depth(name))), seconds=3)
        for action in (
            lambda: broker.publish(name, 1, [2]),
            lambda: broker.hint([1]),
            lambda: broker.depth(name),
            broker.ping,
        ):
            with suppress(BrokerDown):
                call(action)
        with suppress(BrokerDown):
            call(lambda: Broker(subject.url).publish(name, 1, [3]))
        assert time.monotonic() - started < 5
    finally:
        os.killpg(subject.server.pid, signal.SIGCONT)
    until(lambda: succeeds(lambda: broker.publish(name, 1, [4])))
    assert broker.depth(name) >= 1


def call(action: Callable[[], object]) -> None:
    """No call may last much longer than a second."""
    started = time.monotonic()
    try:
        action()
    finally:
        assert time.monotonic() - started < 1.3


def succeeds(action: Callable[[], object]) -> bool:
    try:
        action()
    except BrokerDown:
        return False
    return True


class Gate:
    """A TCP port before a server that can be shut, cutting whoever is connected, and opened again."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._sockets: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._start()

    def shut(self) -> None:
        for connection in [self._listening, *self._sockets]:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._thread.join()
        self._sockets.clear()

    def open(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self.port))
        self._start()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                inside, _ = self._listening.accept()
            except OSError:
                return
            outside = socket.create_connection(self._target)
            self._sockets += [inside, outside]
            for pair in ((inside, outside), (outside, inside)):
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def gated(request: pytest.FixtureRequest) -> Iterator[tuple[Gate, str]]:
    with ExitStack() as stack:
        try:
            server = stack.enter_context(STARTERS[request.param]())
        except ServerUnavailable as missing:
            pytest.skip(str(missing))
        port = urlsplit(server.url).port
        assert port is not None
        gate = Gate(port)
        yield gate, server.url.replace(f":{port}", f":{gate.port}")
        gate.shut()


def test_a_broker_that_returns_is_used_again(gated: tuple[Gate, str], name: str) -> None:
    gate, url = gated
    broker = Broker(url)
    heard: list[list[int]] = []
    gaps: list[int] = []
    listener = Hints(broker, heard.append, on_gap=lambda: gaps.append(1))
    listener.start()
    assert listener.wait_connected(timeout_seconds=5)
    broker.publish(name, 1, [1])
    # AMQP tickets are not confirmed: a cut right after publish() may take the ticket with it.
    until(lambda: broker.depth(name) == 1)
    gate.shut()
    until(lambda: not succeeds(lambda: broker.depth(name)))
    started = time.monotonic()
    for _ in range(100):
        assert not succeeds(lambda: broker.publish(name, 1, [2]))
    assert time.monotonic() - started < 1
    gate.open()
    until(lambda: succeeds(lambda: broker.publish(name, 1, [3])))
    until(lambda: broker.depth(name) == 2)
    until(lambda: len(gaps) == 2)
    broker.hint([8])
    until(lambda: heard == [[8]])
    listener.close()
    broker.close()


def test_a_restarted_server_is_met_by_the_first_call(tmp_path: Path, name: str) -> None:
    with EmbeddedValkey(tmp_path) as valkey:
        broker = Broker(valkey.url)
        broker.publish(name, 1, [1])
        assert valkey.pid is not None
        os.kill(valkey.pid, signal.SIGKILL)
        until(lambda: not valkey.is_running)
        valkey.start()
        broker.publish(name, 1, [2])
        assert broker.depth(name) == 1
        broker.close()


def test_the_private_valkey_has_a_socket_however_deep_its_folder(tmp_path: Path) -> None:
    for state_dir in (tmp_path / "short", tmp_path / ("long folder " * 8) / "state"):
        settings = Settings(state_dir=state_dir)
        url = resolve_broker_url(settings)
        with EmbeddedValkey(state_dir) as valkey:
            assert valkey.url == url
            broker = Broker(url)
            broker.publish("q", 1, [1])
            assert [decode_ticket(m.body) for m in consume(url, "q", messages=1)] == [Ticket(1, [1])]
            assert socket_path(state_dir).parent.stat().st_mode & 0o777 == 0o700
            broker.close()
        assert not socket_path(state_dir).exists()
        assert not valkey.is_running
    assert resolve_broker_url(Settings(state_dir=tmp_path, broker=BrokerSettings(url="amqp://h"))) == "amqp://h"


def test_a_state_folder_has_one_private_valkey(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path), pytest.raises(Conflict, match="another process"):
        EmbeddedValkey(tmp_path).start()


def killed_owner(folder: Path, *, first: str = "pass") -> Broker:
    """Start a private Valkey in a process that is killed then; a client of that Valkey, which is up."""
    owner = (
        "import sys, pathlib; from batchyard.broker.embedded import EmbeddedValkey;"
        f"valkey = EmbeddedValkey(pathlib.Path(sys.argv[1])); valkey.start(); {first};"
        "print('up', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", owner, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        broker = Broker(f"redis+socket://{socket_path(folder)}")
        broker.publish("q", 1, [1])
        process.kill()
    return broker


def test_a_private_valkey_ends_with_its_owner(tmp_path: Path) -> None:
    broker = killed_owner(tmp_path)
    until(lambda: not succeeds(lambda: broker.depth("q")))
    broker.close()


def test_what_a_killed_owner_left_running_is_ended(tmp_path: Path) -> None:
    leftover = killed_owner(tmp_path, first="valkey._guard.kill()")
    assert leftover.depth("q") == 1
    with EmbeddedValkey(tmp_path):
        assert leftover.depth("q") == 0
    leftover.close()


def test_a_valkey_that_cannot_start_says_where_its_log_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchyard.broker.embedded._arguments", lambda *_: ["--no-such-option", "yes"])
    with pytest.raises(BrokerDown, match="log"):
        EmbeddedValkey(tmp_path).start()


def test_an_unknown_scheme_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(ConfigurationError, match=r"kafka://:\*\*\*@h.*amqp://"):
        Broker("kafka://:secret@h")
