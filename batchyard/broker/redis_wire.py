"""Redis and Valkey, spoken to directly.

kombu publishes one message per round trip and offers no bound on the whole call. A queue here is the same list and a
message the same JSON as kombu's, so that any kombu consumer reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis

from batchyard.broker.tickets import Ticket, redis_message
from batchyard.broker.wire import TIMEOUT_SECONDS, Subscription

HEALTH_CHECK_SECONDS = 10


class RedisWire:
    """A pool of connections, one per thread that is calling."""

    errors: tuple[type[BaseException], ...] = (redis.RedisError, OSError)

    def __init__(self, url: str) -> None:
        self._url = client_url(url)
        self._client = self._connect(timeout_seconds=TIMEOUT_SECONDS)

    def push(self, batches: Sequence[tuple[str, Sequence[Ticket]]]) -> None:
        # LPUSH with several values appends them one after the other; consumers pop from the right.
        commands = [(name, [redis_message(ticket, name=name) for ticket in tickets]) for name, tickets in batches]
        if len(commands) == 1:
            name, messages = commands[0]
            self._client.lpush(name, *messages)
            return
        with self._client.pipeline(transaction=False) as pipeline:
            for name, messages in commands:
                pipeline.lpush(name, *messages)
            pipeline.execute()

    def depths(self, names: Sequence[str]) -> list[int]:
        with self._client.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.llen(name)
            return [int(depth) for depth in pipeline.execute()]

    def shout(self, topic: str, payload: bytes) -> None:
        self._client.publish(topic, payload)

    def subscribe(self, topics: Sequence[str]) -> Subscription:
        client = self._connect(timeout_seconds=TIMEOUT_SECONDS, health_check_seconds=HEALTH_CHECK_SECONDS)
        return _RedisSubscription(client, topics)

    def declare(self, name: str) -> None:
        """A list exists when it has members."""

    def ping(self) -> None:
        self._client.ping()

    def close(self) -> None:
        self._client.close()
        self._client.connection_pool.disconnect()

    def _connect(self, *, timeout_seconds: float, health_check_seconds: int = 0) -> redis.Redis:
        # Built from the pool, a client does not get redis-py's own retries, whose back-off exceeds our bound.
        pool = redis.ConnectionPool.from_url(
            self._url,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            health_check_interval=health_check_seconds,
        )
        return redis.Redis(connection_pool=pool)


class _RedisSubscription:
    def __init__(self, client: redis.Redis, topics: Sequence[str]) -> None:
        self._client = client
        self._pubsub: Any = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        try:
            self._pubsub.subscribe(*topics)
            # The answer to the subscription: from here on nothing is missed.
            self._pubsub.get_message(timeout=TIMEOUT_SECONDS)
        except BaseException:
            self.close()
            raise

    def poll(self, *, timeout_seconds: float) -> list[tuple[str, bytes]]:
        message = self._pubsub.get_message(timeout=timeout_seconds)
        return [] if message is None else [(message["channel"].decode(), message["data"])]

    def close(self) -> None:
        self._pubsub.close()
        self._client.connection_pool.disconnect()


def client_url(url: str) -> str:
    """kombu's URL as redis-py reads it: `redis+socket:///PATH?virtual_host=N` is `unix:///PATH?db=N` there."""
    if not url.startswith("redis+socket://"):
        return url
    parts = urlsplit(url)
    database = parse_qs(parts.query).get("virtual_host", ["0"])[0].strip("/") or "0"
    credentials = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return f"unix://{credentials}{unquote(parts.path)}?db={database}"
