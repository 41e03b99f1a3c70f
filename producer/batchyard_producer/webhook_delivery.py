"""Webhooks delivered: what is due is taken from the outbox and sent, until a receiver has heard it or it is dead.

Every API process hosts one thread for this; each takes what it can work on, under a lease per delivery. One that dies
with attempts under way leaves them to the others once their leases are over: a message is delivered at least once, with
the same `webhook-id` each time.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from batchyard import rendering, schemas, webhooks
from batchyard.catalog import Catalog
from batchyard.destinations import networks
from batchyard.errors import Gone, NotFound, Unavailable
from batchyard.logs import log_event
from batchyard.schemas import rfc3339
from batchyard.settings import WebhookSettings
from batchyard.store.base import Delivery, DueDelivery, JobStore
from batchyard.telemetry import WebhookMetrics
from batchyard.webhooks import Event
from batchyard_producer.posting import Poster, PostFailed

STOP_SECONDS = 3.0
"""For attempts under way when the process ends; those that take longer are made again by another."""
GONE = 410
"""The status by which a receiver wants nothing any more."""

log = logging.getLogger(__name__)


class _Message(NamedTuple):
    """One attempt's; the body is the same at every attempt."""

    body: bytes
    headers: Mapping[str, str]
    made_at_ms: int


class WebhookDelivery:
    """A thread with an event loop of its own: `start` and `close`."""

    def __init__(
        self,
        store: JobStore,
        catalog: Catalog,
        settings: WebhookSettings,
        *,
        metrics: WebhookMetrics,
        every_seconds: float,
        poster: Callable[[], Poster] | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`every_seconds`: between looks at an outbox in which nothing was due. `poster` is called on the thread."""
        self._store = store
        self._catalog = catalog
        self._settings = settings
        self._metrics = metrics
        self._every_seconds = every_seconds
        self._make_poster = poster or self._own_poster
        self._chance = chance
        # Longer than any attempt takes, with what comes before and after it.
        self._lease_ms = round((2 * settings.timeout_seconds + 5) * 1000)
        self._underway: Counter[int] = Counter()
        self._is_failing = False
        self._stop = threading.Event()
        self._wake: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._run, name="batchyard-webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Begin no further attempt, and wait a little for those under way."""
        self._stop.set()
        if self._wake is not None:
            self._wake()
        if self._thread.is_alive():
            self._thread.join(timeout=STOP_SECONDS + 5)

    def _run(self) -> None:
        asyncio.run(self._deliver())

    # --- on the thread ---

    async def _deliver(self) -> None:
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(changed.set)

        self._wake = wake
        poster = self._make_poster()
        attempts: set[asyncio.Task[None]] = set()
        while not self._stop.is_set():
            changed.clear()
            for due in await self._take():
                self._underway[due.delivery.webhook_id] += 1
                attempt = asyncio.create_task(self._attempt(poster, due))
                attempts.add(attempt)
                attempt.add_done_callback(attempts.discard)
                attempt.add_done_callback(lambda _: changed.set())
            try:
                async with asyncio.timeout(self._every_seconds):
                    await changed.wait()
            except TimeoutError:
                continue
        if attempts:
            _, late = await asyncio.wait(attempts, timeout=STOP_SECONDS)
            for attempt in late:
                attempt.cancel()

    async def _take(self) -> list[DueDelivery]:
        """What is due and may begin now; nothing while the database is away."""
        self._underway = +self._underway
        try:
            return await asyncio.to_thread(self._take_due, dict(self._underway))
        except Exception as error:  # noqa: BLE001  the thread must outlive every fault
            self._note(error)
            return []

    def _take_due(self, underway: Mapping[int, int]) -> list[DueDelivery]:
        limit = self._settings.concurrency - sum(underway.values())
        of_one = max(1, self._settings.concurrency // 4)
        due = self._store.take_deliveries(limit=limit, of_one=of_one, underway=underway, lease_ms=self._lease_ms)
        oldest = self._store.oldest_due_delivery_ms()
        self._metrics.overdue_seconds.set(0 if oldest is None else max(0, self._store.now_ms() - oldest) / 1000)
        self._is_failing = False
        return due

    async def _attempt(self, poster: Poster, due: DueDelivery) -> None:
        try:
            message = await asyncio.to_thread(self._message, due)
            if message is not None:
                await self._send(poster, due.delivery, message)
        except Exception as error:  # noqa: BLE001  made again once its lease is over
            self._note(error)
        finally:
            self._underway[due.delivery.webhook_id] -= 1

    async def _send(self, poster: Poster, delivery: Delivery, message: _Message) -> None:
        began = time.monotonic()
        status, asked_seconds, error = None, None, None
        try:
            answer = await poster.post(
                delivery.url, message.body, message.headers, now_seconds=message.made_at_ms / 1000
            )
        except PostFailed as failure:
            error = f"the attempt failed: {failure}"[:500]
        else:
            status, asked_seconds = answer
            error = _fault(status)
        self._metrics.attempt_seconds.observe(time.monotonic() - began)
        await asyncio.to_thread(self._tell, delivery, status=status, error=error, asked_seconds=asked_seconds)

    def _tell(self, delivery: Delivery, *, status: int | None, error: str | None, asked_seconds: float | None) -> None:
        retry_in = None
        if error is not None and status != GONE:
            retry_in = webhooks.retry_in_seconds(
                delivery.attempts,
                delays=self._settings.retry_seconds,
                chance=self._chance(),
                asked_seconds=asked_seconds,
            )
        told = self._store.end_delivery(
            delivery,
            status=status,
            error=error,
            retry_in_ms=None if retry_in is None else round(retry_in * 1000),
            disables=status == GONE,
        )
        if told:
            outcome = "delivered" if error is None else "dead" if retry_in is None else "retried"
            self._metrics.attempts.labels(outcome).inc()

    def _message(self, due: DueDelivery) -> _Message | None:
        """None where what it is about is gone, and the delivery with it."""
        delivery = due.delivery
        event = self._bulk(delivery) if delivery.event is Event.BULK_FINISHED else self._job(delivery)
        if event is None:
            return None
        now_ms = self._store.now_ms()
        body = rendering.encode(event)
        name = webhooks.message_id(delivery.subject_id)
        signed = webhooks.sign(body, message=name, timestamp=now_ms // 1000, valid=due.secrets)
        headers = {"content-type": schemas.MEDIA_JSON, "user-agent": "batchyard-webhooks", **signed}
        return _Message(body, headers, now_ms)

    def _job(self, delivery: Delivery) -> schemas.JobEnded | None:
        views = self._store.get_jobs([delivery.subject_id], tenant_id=delivery.tenant_id)
        if not views:
            return None
        load = self._catalog.load(views[0].queue_id)
        shown = rendering.job(views[0], load=load, now_ms=delivery.created_at_ms)
        # Whoever wants the result fetches it; and what may change later would change the message.
        data = msgspec.structs.replace(shown, result=msgspec.UNSET, redriven_as=None)
        word = delivery.event.word
        return schemas.JobEnded(type=word, timestamp=rfc3339(delivery.created_at_ms), data=data)  # type: ignore[arg-type]

    def _bulk(self, delivery: Delivery) -> schemas.BulkFinished | None:
        try:
            view = self._store.get_bulk(delivery.subject_id, tenant_id=delivery.tenant_id)
        except (NotFound, Gone):
            return None
        data = rendering.bulk(view, load=self._catalog.load(view.queue_id))
        return schemas.BulkFinished(type="bulk.finished", timestamp=rfc3339(delivery.created_at_ms), data=data)

    def _own_poster(self) -> Poster:
        allowed = networks(self._settings.allowed_networks)
        return Poster(allowed=allowed, timeout_seconds=self._settings.timeout_seconds)

    def _note(self, error: Exception) -> None:
        """Said once per outage."""
        if not self._is_failing:
            self._is_failing = True
            unexpected = None if isinstance(error, Unavailable) else error
            level = logging.ERROR if unexpected else logging.WARNING
            log_event(log, "webhook_delivery_failed", level=level, error=unexpected, reason=str(error))


def _fault(status: int) -> str | None:
    """Why an answer is not that the message was heard."""
    if 200 <= status < 300:
        return None
    redirects = ", and redirects are not followed" if 300 <= status < 400 else ""
    return f"the receiver answered {status}{redirects}"
