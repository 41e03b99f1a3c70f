"""A bounded queue between two stages of the pipeline, measured in rows rather than in messages."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):
    """The channel was closed and holds nothing more."""


class Channel(Generic[T]):
    """Hands messages from any number of threads to any number of threads, in order.

    `limit` bounds the weight held. A message is taken in whenever the channel is below its limit, so a single message
    heavier than the limit passes too; with `weigh` left out every message weighs 1.
    """

    def __init__(self, *, limit: int, weigh: Callable[[T], int] = lambda _: 1) -> None:
        self._limit = limit
        self._weigh = weigh
        self._messages: deque[T] = deque()
        self._weight = 0
        self._is_closed = False
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)
        self._drained = threading.Condition(self._lock)

    def put(self, message: T, *, at_once: bool = False) -> None:
        """Wait for room, unless `at_once`, then append. Raises Closed."""
        with self._lock:
            while self._weight >= self._limit and not (at_once or self._is_closed):
                self._drained.wait()
            if self._is_closed:
                raise Closed
            self._messages.append(message)
            self._weight += self._weigh(message)
            self._filled.notify()

    def take(self, timeout: float | None = None) -> T | None:
        """Wait for the next message; None after `timeout` seconds without one. Raises Closed once closed and empty."""
        with self._lock:
            while not self._messages and not self._is_closed:
                if not self._filled.wait(timeout):
                    break
            if self._messages:
                return self._pop()
            if self._is_closed:
                raise Closed
            return None

    def take_more(self, limit: int) -> list[T]:
        """What is at hand now, in order, as long as the weight stays within `limit`; never waits."""
        taken: list[T] = []
        with self._lock:
            while self._messages and (limit := limit - self._weigh(self._messages[0])) >= 0:
                taken.append(self._pop())
        return taken

    def take_all(self) -> list[T]:
        """Everything held, now."""
        with self._lock:
            taken = list(self._messages)
            self._messages.clear()
            self._weight = 0
            self._drained.notify_all()
            return taken

    def close(self) -> None:
        """Nothing more comes in; what is held can still be taken."""
        with self._lock:
            self._is_closed = True
            self._filled.notify_all()
            self._drained.notify_all()

    @property
    def weight(self) -> int:
        """How much is held now."""
        return self._weight

    def _pop(self) -> T:
        message = self._messages.popleft()
        self._weight -= self._weigh(message)
        self._drained.notify_all()
        return message
