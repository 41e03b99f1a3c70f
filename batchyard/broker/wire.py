"""What the broker needs of a transport; one implementation speaks Redis, the other goes through kombu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from batchyard.broker.tickets import Ticket

TIMEOUT_SECONDS = 0.45
"""Of connecting and of one exchange each, so that the two together stay below a second."""

FANOUT_MESSAGES = 10_000
"""Fanout messages kept for a listener that does not read, where the transport can bound them."""


class Subscription(Protocol):
    """A live subscription; owned by one thread."""

    def poll(self, *, timeout_seconds: float) -> list[tuple[str, bytes]]:
        """What has arrived, as (topic, payload), waiting at most that long for the first message."""

    def close(self) -> None: ...


class Wire(Protocol):
    """Thread-safe. Every method raises one of `errors` where the broker does not answer within about a second."""

    errors: tuple[type[BaseException], ...]

    def push(self, batches: Sequence[tuple[str, Sequence[Ticket]]]) -> None:
        """Append tickets to queues, by broker name, in order, in one round trip."""

    def depths(self, names: Sequence[str]) -> list[int]:
        """Tickets that wait in each queue; 0 for one that does not exist."""

    def shout(self, topic: str, payload: bytes) -> None:
        """Send to whoever listens to the topic now."""

    def subscribe(self, topics: Sequence[str]) -> Subscription:
        """Listen to topics on a connection of its own."""

    def declare(self, name: str) -> None: ...

    def ping(self) -> None: ...

    def close(self) -> None: ...
