"""RabbitMQ, and kombu's transport within one process, through kombu."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import kombu
import kombu.exceptions
from amqp.exceptions import ChannelError

from batchyard.broker.tickets import (
    CONTENT_ENCODING,
    CONTENT_TYPE,
    Ticket,
    encode_ticket,
    ticket_headers,
)
from batchyard.broker.wire import FANOUT_MESSAGES, TIMEOUT_SECONDS, Subscription

HEARTBEAT_SECONDS = 10
MEMORY_POLL_SECONDS = 0.005
PERSISTENT, TRANSIENT = 2, 1

T = TypeVar("T")


def ticket_queue(name: str, *, transport: str) -> kombu.Queue:
    """A queue of tickets as every party must declare it: RabbitMQ refuses a second declaration that differs."""
    arguments = {"x-queue-type": "quorum"} if transport == "amqp" else None
    return kombu.Queue(
        name, exchange=kombu.Exchange(""), routing_key=name, durable=True, no_declare=False, queue_arguments=arguments
    )


class KombuWire:
    """One connection, used by one thread at a time; made when first needed and again after a failure."""

    errors: tuple[type[BaseException], ...] = (OSError, kombu.exceptions.KombuError)

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._connection: kombu.Connection | None = None
        self._channel: Any = None
        self._declared: set[str] = set()
        probe = _connection(url, heartbeat_seconds=0)
        self._transport = "amqp" if probe.transport_cls in {"amqp", "amqps", "pyamqp"} else str(probe.transport_cls)
        transport = probe.get_transport_cls()
        # py-amqp raises AttributeError where it meets a connection that is already gone.
        self.errors = (*self.errors, *transport.connection_errors, *transport.channel_errors, AttributeError)

    def push(self, batches: Sequence[tuple[str, Sequence[Ticket]]]) -> None:
        self._use(lambda channel: self._push(channel, batches))

    def depths(self, names: Sequence[str]) -> list[int]:
        return [self._use(partial(self._depth, name=name)) for name in names]

    def shout(self, topic: str, payload: bytes) -> None:
        self._use(lambda channel: self._shout(channel, topic, payload))

    def subscribe(self, topics: Sequence[str]) -> Subscription:
        return _KombuSubscription(_connection(self._url, heartbeat_seconds=HEARTBEAT_SECONDS), topics)

    def declare(self, name: str) -> None:
        self._use(lambda channel: self._declare(channel, name))

    def ping(self) -> None:
        # A declaration is a round trip; the exchange is the one that hints need.
        self._use(lambda channel: _exchange("batchyard.ping").declare(channel=channel))

    def close(self) -> None:
        with self._exclusively():
            self._drop(politely=True)

    # --- with the lock held ---

    def _push(self, channel: Any, batches: Sequence[tuple[str, Sequence[Ticket]]]) -> None:
        for name, tickets in batches:
            # RabbitMQ drops, silently, what is published to a queue that does not exist.
            if name not in self._declared:
                self._declare(channel, name)
            for ticket in tickets:
                message_id = str(uuid.uuid4())
                _publish(
                    channel,
                    encode_ticket(ticket),
                    routing_key=name,
                    content_type=CONTENT_TYPE,
                    content_encoding=CONTENT_ENCODING,
                    headers=ticket_headers(ticket, message_id=message_id),
                    properties={"correlation_id": message_id, "delivery_mode": PERSISTENT},
                )

    def _depth(self, channel: Any, *, name: str) -> int:
        try:
            return int(channel.queue_declare(queue=name, passive=True).message_count)
        except ChannelError:
            # No such queue. The server has closed the channel, and whatever else was declared may be gone too.
            self._drop()
            return 0

    def _shout(self, channel: Any, topic: str, payload: bytes) -> None:
        if topic not in self._declared:
            _exchange(topic).declare(channel=channel)
            self._declared.add(topic)
        _publish(
            channel,
            payload,
            exchange=topic,
            content_type="application/octet-stream",
            content_encoding="binary",
            properties={"delivery_mode": TRANSIENT},
        )

    def _declare(self, channel: Any, name: str) -> None:
        ticket_queue(name, transport=self._transport).bind(channel).declare()
        self._declared.add(name)

    def _use(self, action: Callable[[Any], T]) -> T:
        with self._exclusively():
            if self._channel is None:
                self._open()
            try:
                return action(self._channel)
            except BaseException:
                # Whatever was on its way is in doubt; the next call starts on a connection of its own.
                self._drop()
                raise

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=2 * TIMEOUT_SECONDS):
            raise TimeoutError("the broker's connection is held by a call that does not end")
        try:
            yield
        finally:
            self._lock.release()

    def _open(self) -> None:
        self._connection = _connection(self._url, heartbeat_seconds=0)
        try:
            _connect(self._connection)
            self._channel = self._connection.channel()
        except BaseException:
            self._drop()
            raise

    def _drop(self, *, politely: bool = False) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        self._declared.clear()
        if connection is not None:
            _part(connection, politely=politely)


class _KombuSubscription:
    def __init__(self, connection: kombu.Connection, topics: Sequence[str]) -> None:
        self._connection = connection
        self._arrived: list[tuple[str, bytes]] = []
        try:
            _connect(connection)
            channel = connection.channel()
            queues = [self._queue(topic) for topic in topics]
            self._consumer = kombu.Consumer(channel, queues=queues, on_message=self._receive, no_ack=True)
            self._consumer.consume()
        except BaseException:
            _part(connection, politely=False)
            raise

    def poll(self, *, timeout_seconds: float) -> list[tuple[str, bytes]]:
        if self._connection.supports_heartbeats:
            self._connection.heartbeat_check()
        with suppress(TimeoutError):
            self._connection.drain_events(timeout=timeout_seconds)
        arrived, self._arrived = self._arrived, []
        return arrived

    def close(self) -> None:
        with suppress(Exception):
            self._consumer.cancel()
        _part(self._connection, politely=True)

    def _receive(self, message: Any) -> None:
        body = message.body
        self._arrived.append((message.delivery_info["exchange"], body if isinstance(body, bytes) else bytes(body)))

    @staticmethod
    def _queue(topic: str) -> kombu.Queue:
        return kombu.Queue(
            f"{topic}.{uuid.uuid4()}",
            exchange=_exchange(topic),
            durable=False,
            exclusive=True,
            auto_delete=True,
            max_length=FANOUT_MESSAGES,
        )


def _exchange(topic: str) -> kombu.Exchange:
    return kombu.Exchange(topic, type="fanout", durable=True)


def _publish(
    channel: Any,
    body: bytes,
    *,
    exchange: str = "",
    routing_key: str = "",
    content_type: str,
    content_encoding: str,
    headers: dict[str, Any] | None = None,
    properties: dict[str, Any],
) -> None:
    message = channel.prepare_message(
        body,
        content_type=content_type,
        content_encoding=content_encoding,
        headers=headers,
        properties=properties,
    )
    channel.basic_publish(message, exchange=exchange, routing_key=routing_key)


def _connection(url: str, *, heartbeat_seconds: int) -> kombu.Connection:
    scheme = url.partition(":")[0]
    options: dict[str, float] = (
        {"polling_interval": MEMORY_POLL_SECONDS}
        if scheme == "memory"
        else {"read_timeout": TIMEOUT_SECONDS, "write_timeout": TIMEOUT_SECONDS}
    )
    return kombu.Connection(
        url, connect_timeout=TIMEOUT_SECONDS, heartbeat=heartbeat_seconds, transport_options=options
    )


def _connect(connection: kombu.Connection) -> None:
    # kombu's connect() sleeps and tries again.
    connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)


def _part(connection: kombu.Connection, *, politely: bool) -> None:
    """End a connection, which may be broken; politely: with a farewell, which a hung server can delay."""
    with suppress(Exception):
        if politely or connection.transport_cls == "memory":
            connection.release()
        else:
            connection.collect(socket_timeout=TIMEOUT_SECONDS)
