"""A consumer made of nothing but what the dispatcher meets: it takes tickets, claims and finishes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import kombu

from batchyard.broker import decode_ticket
from batchyard.broker.application import celery_app, consumer_queue
from batchyard.errors import Unavailable
from batchyard.jobs import Accepted, Outcome, State, Submission
from batchyard.store.base import JobStore, ModelConfig, ModelVersion
from batchyard.ticketing import queue_names

LEASE_MS = 30_000


def until(condition: Callable[[], object], *, seconds: float = 15) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "did not come true in time"
        time.sleep(0.005)


def add_model(store: JobStore, name: str) -> ModelVersion:
    (version,) = store.sync_models([ModelConfig(model=name, version="1", runtime="tests:Echo")])
    return version


def submit(
    store: JobStore, queue_id: int, jobs: int, *, tenant_id: int = 1, priority: int = 5, **more: Any
) -> Sequence[int]:
    submission = Submission(
        tenant_id=tenant_id,
        queue_id=queue_id,
        inputs=[b'"x"'] * jobs,
        costs=[1] * jobs,
        priority=priority,
        **more,
    )
    (accepted,) = store.submit([submission])
    assert isinstance(accepted, Accepted), accepted
    return accepted.ids


class Consumer:
    """Serves one queue on a thread of its own. `takes` false: registered and ready, yet no ticket is read."""

    def __init__(self, store: JobStore, url: str, version: ModelVersion, queue_id: int, *, takes: bool = True) -> None:
        self.claimed: list[int] = []
        """Ids in the order in which they were claimed."""
        self.ticketed: list[int] = []
        """Ids in the order of their tickets."""
        self._store = store
        self._url = url
        self._queue_id = queue_id
        self._name = queue_names([version])[queue_id]
        self.owner = store.register_consumer(
            pool="p", host="h", pid=1, device="cpu", capacity="on_demand", queue_ids=[queue_id], lease_ms=LEASE_MS
        )
        store.renew(self.owner, lease_ms=LEASE_MS, state="ready", stats={})
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        if takes:
            self._thread.start()

    def take_tickets(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        with suppress(Unavailable):
            self._store.deregister(self.owner)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._consume()
            except self._errors:
                self._stop.wait(0.1)

    @property
    def _errors(self) -> tuple[type[BaseException], ...]:
        transport = celery_app(self._url).connection_for_read().transport
        return (OSError, *transport.connection_errors, *transport.channel_errors)

    def _consume(self) -> None:
        with celery_app(self._url).connection_for_read() as connection:
            channel = connection.channel()
            consumer = kombu.Consumer(channel, queues=[consumer_queue(self._name, self._url)], on_message=self._take)
            consumer.qos(prefetch_count=4)
            with consumer:
                while not self._stop.is_set():
                    with suppress(TimeoutError):
                        connection.drain_events(timeout=0.1)

    def _take(self, message: Any) -> None:
        ticket = decode_ticket(message.body)
        assert ticket is not None
        claimed = self._store.claim([(ticket.queue_id, ticket.ids)], owner=self.owner)
        message.ack()
        self.ticketed += ticket.ids
        self.claimed += [job.id for job in claimed]
        if claimed:
            self._store.finish([Outcome(job, State.SUCCEEDED, b"1") for job in claimed], owner=self.owner)


@contextmanager
def consuming(
    store: JobStore, url: str, version: ModelVersion, queue_id: int, *, takes: bool = True
) -> Iterator[Consumer]:
    consumer = Consumer(store, url, version, queue_id, takes=takes)
    try:
        yield consumer
    finally:
        consumer.close()
