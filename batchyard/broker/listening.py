"""Listening to the broker's fanout: a thread that survives outages and gives what it hears to callbacks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from batchyard.broker.client import HINTS_TOPIC, Broker, unpack_ids
from batchyard.broker.wire import Subscription
from batchyard.errors import BrokerDown
from batchyard.logs import log_event

POLL_SECONDS = 0.2
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 2.0

log = logging.getLogger(__name__)


class Listener:
    """Gives each message of the topics to its callback, in a thread of its own; reconnects by itself.

    Callbacks run on that thread and should be quick: while one runs nothing is read, and the broker drops what exceeds
    its bound. `on_gap`, if given, is called after every connection, the first included: messages may be missed.
    """

    def __init__(
        self,
        broker: Broker,
        callbacks: Mapping[str, Callable[[bytes], object]],
        *,
        on_gap: Callable[[], object] | None = None,
        name: str = "listener",
    ) -> None:
        self._broker = broker
        self._callbacks = dict(callbacks)
        self._on_gap = on_gap
        self._stop = threading.Event()
        self._connected = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"batchyard-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop listening; returns when the thread is done."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def wait_connected(self, *, timeout_seconds: float) -> bool:
        """Whether it listens by then; messages sent from now on will be heard."""
        return self._connected.wait(timeout_seconds)

    def _run(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._stop.is_set():
            try:
                subscription = self._broker.subscribe(list(self._callbacks))
            except BrokerDown:
                self._stop.wait(pause)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
                continue
            pause = FIRST_PAUSE_SECONDS
            try:
                self._connected.set()
                self._tell_gap()
                self._listen(subscription)
            except self._broker.errors as error:
                log_event(log, "listener_interrupted", reason=str(error))
                self._stop.wait(pause)
            finally:
                self._connected.clear()
                subscription.close()

    def _listen(self, subscription: Subscription) -> None:
        while not self._stop.is_set():
            for topic, payload in subscription.poll(timeout_seconds=POLL_SECONDS):
                self._give(topic, payload)

    def _give(self, topic: str, payload: bytes) -> None:
        try:
            self._callbacks[topic](payload)
        except Exception as error:  # noqa: BLE001  the thread must outlive any fault of a callback
            log_event(log, "listener_callback_failed", level=logging.ERROR, error=error, topic=topic)

    def _tell_gap(self) -> None:
        if self._on_gap is None:
            return
        try:
            self._on_gap()
        except Exception as error:  # noqa: BLE001  as above
            log_event(log, "listener_callback_failed", level=logging.ERROR, error=error)


class Hints(Listener):
    """Gives the ids of each completion hint to `on_ids`. A hint that is lost must cost a reader only a sweep."""

    def __init__(
        self, broker: Broker, on_ids: Callable[[list[int]], object], *, on_gap: Callable[[], object] | None = None
    ) -> None:
        self._on_ids = on_ids
        super().__init__(broker, {HINTS_TOPIC: self._decode}, on_gap=on_gap, name="hints")

    def _decode(self, payload: bytes) -> None:
        ids = unpack_ids(payload)
        if ids:
            self._on_ids(ids)
