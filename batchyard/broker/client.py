"""The broker as the rest of batchyard sees it: tickets out, depths and hints, and no call that blocks for long."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Sequence
from typing import TypeVar
from urllib.parse import urlsplit

from batchyard.broker.breaker import Breaker
from batchyard.broker.tickets import TICKET_JOBS, Ticket, cut_tickets
from batchyard.broker.wire import Subscription, Wire
from batchyard.errors import BrokerDown, ConfigurationError, MissingExtra
from batchyard.jobs import runs

HINTS_TOPIC = "batchyard.hints"
HINT_JOBS = 4096
"""Jobs named by one hint at most."""

T = TypeVar("T")


class Broker:
    """Publishes tickets and hints. Thread-safe; connects when first used and again after every failure.

    No call blocks for more than about a second: a broker that hangs is given up after a short timeout, and until it
    answers again callers hear `BrokerDown` at once. Every call but `close` may raise `BrokerDown`.

    `url`: `redis://`, `rediss://`, `redis+socket:///PATH`, `amqp://`, `amqps://`, or `memory://` (within one process).
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._wire = _open_wire(url)
        self._breaker = Breaker()

    def __repr__(self) -> str:
        return f"Broker({safe_url(self.url)!r})"

    @property
    def is_up(self) -> bool:
        """Whether the last call reached the broker; true before the first."""
        return self._breaker.is_closed

    def publish(self, name: str, queue_id: int, ids: Sequence[int], *, ticket_jobs: int = TICKET_JOBS) -> int:
        """Append tickets for these jobs, in this order, to the queue with this broker name; returns how many."""
        return self.publish_many([(name, cut_tickets(queue_id, ids, jobs=ticket_jobs))])

    def publish_many(self, batches: Sequence[tuple[str, Sequence[Ticket]]]) -> int:
        """Append tickets to several queues, by broker name, in one round trip; returns how many."""
        some = [(name, tickets) for name, tickets in batches if tickets]
        if some:
            self._call(lambda: self._wire.push(some))
        return sum(len(tickets) for _, tickets in some)

    def depth(self, name: str) -> int:
        """Tickets that wait in the broker, not counting those a consumer holds; 0 where the queue does not exist."""
        return self.depths([name])[0]

    def depths(self, names: Sequence[str]) -> list[int]:
        """`depth` of several queues."""
        return self._call(lambda: self._wire.depths(names)) if names else []

    def declare(self, name: str) -> None:
        """Make the queue exist, where the broker wants that before publishing."""
        self._call(lambda: self._wire.declare(name))

    def hint(self, ids: Sequence[int]) -> None:
        """Tell all listeners that something became of these jobs, see `Hints`."""
        for piece in runs(ids, HINT_JOBS):
            self.shout(HINTS_TOPIC, pack_ids(piece))

    def shout(self, topic: str, payload: bytes) -> None:
        """Send to all who listen to the topic now; nobody may."""
        self._call(lambda: self._wire.shout(topic, payload))

    def subscribe(self, topics: Sequence[str]) -> Subscription:
        """Listen to topics, on a connection of its own; see `Listener`, which also reconnects."""
        return self._call(lambda: self._wire.subscribe(topics))

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        """What a `Subscription` raises when its connection is gone."""
        return self._wire.errors

    def ping(self) -> None:
        self._call(self._wire.ping)

    def close(self) -> None:
        try:
            self._wire.close()
        except self._wire.errors:
            return

    def _call(self, action: Callable[[], T]) -> T:
        if not self._breaker.admits():
            raise BrokerDown(f"the broker at {safe_url(self.url)} does not answer")
        try:
            result = self._attempt(action)
        except self._wire.errors as error:
            self._breaker.failed()
            raise BrokerDown(f"the broker at {safe_url(self.url)} does not answer: {_words(error)}") from error
        self._breaker.succeeded()
        return result

    def _attempt(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except self._wire.errors as error:
            # The connection may only be a leftover of a server that has been restarted: once more on a fresh one.
            # A ticket published twice is harmless. A timeout says that the server hangs: waiting again would not help.
            if is_timeout(error) or not self._breaker.is_closed:
                raise
        return action()


def pack_ids(ids: Sequence[int]) -> bytes:
    """Ids as big-endian 64-bit numbers."""
    numbers = array("q", ids)
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers.tobytes()


def unpack_ids(packed: bytes) -> list[int]:
    """What `pack_ids` packed; nothing from bytes of another length or with negative numbers."""
    if len(packed) % 8 or len(packed) > HINT_JOBS * 8:
        return []
    numbers = array("q", packed)
    if sys.byteorder == "little":
        numbers.byteswap()
    ids = numbers.tolist()
    return ids if not ids or min(ids) > 0 else []


def safe_url(url: str) -> str:
    """A URL without its password."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return parts._replace(netloc=f"{parts.username or ''}:***@{parts.netloc.rpartition('@')[2]}").geturl()


def is_timeout(error: BaseException) -> bool:
    return isinstance(error, TimeoutError) or type(error).__name__ == "TimeoutError"


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _open_wire(url: str) -> Wire:
    scheme = url.partition("://")[0]
    try:
        if scheme in {"redis", "rediss", "redis+socket"}:
            from batchyard.broker.redis_wire import RedisWire

            return RedisWire(url)
        if scheme in {"amqp", "amqps", "pyamqp", "memory"}:
            from batchyard.broker.kombu_wire import KombuWire

            return KombuWire(url)
    except ModuleNotFoundError as error:
        raise MissingExtra(feature="the broker", extra="producer") from error
    allowed = "redis://, rediss://, redis+socket:///PATH, amqp://, amqps://"
    raise ConfigurationError([f"broker.url is {safe_url(url)!r}; allowed are {allowed}, and embedded"])
