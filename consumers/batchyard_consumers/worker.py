"""The Celery worker around a consumer: tickets in, acknowledgements out, remote control and events.

Celery and kombu own the main thread (the *hub*): it receives messages, answers `celery inspect`, keeps the connection.
Nothing is computed on it and no database is touched. Other threads speak to it through a `Mailbox`: they
append to a deque and write a byte into a pipe that the hub polls.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import celery
from celery import bootsteps
from celery.worker import WorkController
from celery.worker.control import Panel, inspect_command
from kombu import Consumer as MessageConsumer

from batchyard.broker import TASK_NAME, Broker, decode_ticket
from batchyard.broker.application import celery_app, consumer_queue
from batchyard.settings import PoolSettings, Settings
from batchyard.store.base import JobStore
from batchyard.telemetry import log_event
from batchyard.ticketing import FIRST_PREFETCH, ticket_jobs
from batchyard_consumers.claiming import HeldTicket, ServedQueue
from batchyard_consumers.consumer import Consumer
from batchyard_consumers.heartbeat import PATH_SECONDS_PER_JOB
from batchyard_consumers.notices.watching import metadata_of
from batchyard_consumers.pod import own_pod
from batchyard_consumers.served import Served

PREFETCH_SECONDS = 0.5
"""Tickets are fetched ahead for this much work."""
LARGEST_PREFETCH = 32
ADJUST_SECONDS = 2.0
EXIT_SECONDS = 2.0
"""For the hub to say goodbye; then the process ends without it."""

HARMLESS_COMMANDS = frozenset(
    [
        *("active", "active_queues", "clock", "registered", "reserved", "revoked", "scheduled"),
        *("dump_active", "dump_reserved", "dump_revoked", "dump_schedule", "dump_tasks", "query_task"),
        *("enable_events", "disable_events", "heartbeat", "hello", "ping", "stats", "tickets"),
    ]
)
"""Of Celery's remote control, and ours."""

log = logging.getLogger(__name__)


def prefetch_for(served: Served) -> int:
    """How many tickets of a queue to hold unclaimed."""
    seconds = served.speed.seconds_per_job
    if seconds is None:
        return FIRST_PREFETCH
    jobs = PREFETCH_SECONDS / max(seconds, PATH_SECONDS_PER_JOB)
    return max(1, min(LARGEST_PREFETCH, round(jobs / ticket_jobs(seconds))))


class Mailbox:
    """Calls from other threads, carried out on the hub's thread in order. The hub polls `fileno`."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)

    def fileno(self) -> int:
        return self._read_fd

    def post(self, call: Callable[[], None]) -> None:
        """Have the hub do it soon. Any thread, and a signal handler."""
        self._calls.append(call)
        with suppress(BlockingIOError):  # full: the hub has not looked yet and will find this call too
            os.write(self._write_fd, b"\0")

    def empty(self) -> None:
        """Do what has been posted. The hub's thread."""
        with suppress(BlockingIOError):
            os.read(self._read_fd, 4096)
        while self._calls:
            self._calls.popleft()()


class Tickets:
    """The messages of a consumer's queues, one channel a queue. Owned by the hub's thread, but for `TicketSource`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.mailbox = Mailbox()
        self.consumer: Consumer | None = None
        self._celery_consumer: Any = None
        self._taken_up: dict[int, MessageConsumer] = {}
        self._prefetch: dict[int, int] = {}
        self._is_stopped = False
        self.received = 0
        self.rejected = 0
        self.acknowledged = 0

    # --- TicketSource: any thread ---

    def done(self, tickets: Sequence[HeldTicket]) -> None:
        self.mailbox.post(lambda: self._acknowledge(tickets))

    def refresh(self) -> None:
        self.mailbox.post(self.adjust)

    def reconnect(self) -> None:
        self.mailbox.post(self._break_connection)

    def stop(self) -> None:
        self.mailbox.post(self._stop)

    # --- the hub's thread ---

    def connected(self, celery_consumer: Any) -> None:
        """A connection is there, the first or a new one; messages of an old one can no longer be acknowledged."""
        self._celery_consumer = celery_consumer
        self._taken_up.clear()
        self._prefetch.clear()
        self.adjust()

    def disconnected(self) -> None:
        self._taken_up.clear()
        self._prefetch.clear()

    def adjust(self) -> None:
        """Consume from the queues of every loaded model, with a prefetch that fits its speed."""
        connection = getattr(self._celery_consumer, "connection", None)
        if self.consumer is None or connection is None or self._is_stopped:
            return
        for queue in self.consumer.queues:
            if queue.served.model is None:
                continue
            if queue.queue_id not in self._taken_up:
                self._take_up(queue, connection)
            else:
                self._set_prefetch(queue)

    def _take_up(self, queue: ServedQueue, connection: Any) -> None:
        assert self.consumer is not None
        consumer = MessageConsumer(
            connection.channel(),
            queues=[consumer_queue(self.consumer.queue_names[queue.queue_id], self.url)],
            accept=["json"],
            on_message=lambda message: self._receive(message, queue.queue_id),
            on_decode_error=self._reject,
            prefetch_count=prefetch_for(queue.served),
        )
        consumer.consume()
        self._taken_up[queue.queue_id] = consumer
        self._prefetch[queue.queue_id] = prefetch_for(queue.served)

    def _set_prefetch(self, queue: ServedQueue) -> None:
        """Follow the model's speed where it has doubled or halved."""
        wanted, known = prefetch_for(queue.served), self._prefetch[queue.queue_id]
        if known / 2 < wanted < known * 2:
            return
        consumer = self._taken_up[queue.queue_id]
        if self.url.startswith("redis"):
            consumer.qos(prefetch_count=wanted)
        else:
            # A quorum queue's consumer keeps the prefetch it began with.
            consumer.cancel()
            consumer.qos(prefetch_count=wanted)
            consumer.consume()
        self._prefetch[queue.queue_id] = wanted

    def _receive(self, message: Any, queue_id: int) -> None:
        ticket = decode_ticket(message.body)
        assert self.consumer is not None
        if ticket is None or ticket.queue_id != queue_id:
            self._reject(message)
            return
        self.received += 1
        self.consumer.meter.metrics.received_tickets.labels("accepted").inc()
        self.consumer.pipeline.inbox.put(HeldTicket(queue_id=queue_id, ids=ticket.ids, message=message))
        self._event(
            "task-received", message, name=TASK_NAME, args="()", kwargs=str({"jobs": len(ticket.ids)}), retries=0
        )

    def _reject(self, message: Any, error: Exception | None = None) -> None:
        """No ticket of ours: take it off the queue, count it, go on."""
        self.rejected += 1
        if self.consumer is not None:
            self.consumer.meter.metrics.received_tickets.labels("rejected").inc()
        log_event(log, "ticket_rejected", level=logging.WARNING, reason=repr(error) if error else "not a ticket")
        with suppress(*self._errors()):
            message.ack()

    def _acknowledge(self, tickets: Sequence[HeldTicket]) -> None:
        for ticket in tickets:
            self.acknowledged += 1
            if ticket.message is None:
                continue
            # A message of a connection that is gone cannot be acknowledged; it comes again and claims nothing.
            with suppress(*self._errors()):
                ticket.message.ack()
            self._event("task-succeeded", ticket.message, result="claimed", runtime=0.0)

    def _event(self, kind: str, message: Any, **fields: Any) -> None:
        """Tell Flower and other monitors, where one has asked for events."""
        dispatcher = getattr(self._celery_consumer, "event_dispatcher", None)
        if dispatcher is None or not dispatcher.enabled or (dispatcher.groups and "task" not in dispatcher.groups):
            return
        with suppress(*self._errors()):
            dispatcher.send(kind, uuid=message.headers.get("id"), **fields)

    def _break_connection(self) -> None:
        connection = getattr(self._celery_consumer, "connection", None)
        if connection is not None:
            raise connection.connection_errors[0]("no ticket has come although jobs are queued")

    def _stop(self) -> None:
        self._is_stopped = True
        for consumer in self._taken_up.values():
            with suppress(*self._errors()):
                if self.url.startswith("redis"):
                    # A blocking pop may be under way: what it brings is handed back with the other tickets.
                    consumer.qos(prefetch_count=1)
                else:
                    consumer.cancel()

    def _errors(self) -> tuple[type[BaseException], ...]:
        connection = getattr(self._celery_consumer, "connection", None)
        known = () if connection is None else (*connection.connection_errors, *connection.channel_errors)
        return (*known, OSError, AttributeError, KeyError)

    def info(self) -> dict[str, Any]:
        return {
            "received": self.received,
            "acknowledged": self.acknowledged,
            "rejected": self.rejected,
            "prefetch": {self.consumer.queue_names[queue_id]: count for queue_id, count in self._prefetch.items()}
            if self.consumer is not None
            else {},
        }


def ticket_step(tickets: Tickets) -> type[bootsteps.ConsumerStep]:
    """The step that Celery starts with every connection and stops with it."""

    class TicketStep(bootsteps.ConsumerStep):
        requires = ("celery.worker.consumer.control:Control", "celery.worker.consumer.events:Events")

        def start(self, c: Any) -> None:
            tickets.connected(c)

        def stop(self, c: Any) -> None:
            # On a lost connection and at the end alike; channels are dropped with their sockets, since closing one can
            # wait a second for a blocking pop. A drain is begun by the signal, never from here.
            tickets.disconnected()

        shutdown = stop

        def register_with_event_loop(self, c: Any, hub: Any) -> None:
            # Again after every loop error: the hub forgets its readers then.
            hub.add_reader(tickets.mailbox.fileno(), tickets.mailbox.empty)
            hub.call_repeatedly(ADJUST_SECONDS, tickets.adjust)

        def info(self, c: Any) -> dict[str, Any]:
            return {"batchyard": _report(tickets)}

    return TicketStep


def _report(tickets: Tickets) -> dict[str, Any]:
    if tickets.consumer is None:
        return {}
    consumer = tickets.consumer
    return {
        "pool": consumer.pool.name,
        "device": consumer.device_name,
        "state": consumer.heartbeat.state,
        "held": consumer.pipeline.stages(),
        "tickets": {"waiting": len(consumer.pipeline.inbox), **tickets.info()},
        "models": {served.name: served.model is not None for served in consumer.versions},
    }


def run_worker(settings: Settings, pool: PoolSettings, *, store: JobStore, url: str) -> None:
    """Serve a pool until the process is told to end; does not return, but exits the process."""
    tickets = Tickets(url)
    app = celery_app(url)
    app.steps["consumer"].add(ticket_step(tickets))
    _register_commands(tickets)
    restrict_control()
    controller = _controller(app, pool)
    goodbye = _Goodbye(tickets)
    tickets.consumer = Consumer(
        settings,
        pool,
        store=store,
        broker=Broker(url),
        source=tickets,
        on_end=goodbye.say,
        pod=own_pod(os.environ),
        zone=os.environ.get("NODE_ZONE", ""),
        metadata=metadata_of(pool, os.environ),
    )
    _install_signals(tickets)
    tickets.consumer.start()
    controller.start()
    # The hub ended by itself. A drain that is under way ends the process; anything else is a fault.
    if threading.current_thread() is threading.main_thread():
        tickets.consumer.drain(reason="the event loop ended", code=1)
        goodbye.finished.wait()


def _controller(app: celery.Celery, pool: PoolSettings) -> WorkController:
    return app.WorkController(
        app=app,
        hostname=f"{pool.name}-{os.getpid()}@{socket.gethostname()}",
        pool="solo",
        concurrency=1,
        exclude_queues=[app.conf.task_default_queue],
        without_mingle=True,
        without_gossip=True,
        loglevel=logging.WARNING,
    )


class _Goodbye:
    """Ends the process once the consumer is drained."""

    def __init__(self, tickets: Tickets) -> None:
        self._tickets = tickets
        self.finished = threading.Event()

    def say(self, code: int) -> None:
        """Let the hub tell the monitors; then exit without Celery's own teardown, which can wait for the broker."""
        told = threading.Event()

        def tell() -> None:
            dispatcher = getattr(self._tickets._celery_consumer, "event_dispatcher", None)
            with suppress(Exception):
                if dispatcher is not None:
                    dispatcher.send("worker-offline")
            connection = getattr(self._tickets._celery_consumer, "connection", None)
            if connection is not None and not self._tickets.url.startswith("redis"):
                with suppress(Exception):
                    connection.close()
            told.set()

        self._tickets.mailbox.post(tell)
        told.wait(EXIT_SECONDS)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _install_signals(tickets: Tickets) -> None:
    """SIGTERM and Ctrl-C drain; a second one hurries."""
    wanted: deque[str] = deque()

    def serve() -> None:
        while True:
            ready.acquire()
            assert tickets.consumer is not None
            tickets.consumer.drain(reason=wanted.popleft())

    ready = threading.Semaphore(0)
    threading.Thread(target=serve, name="batchyard-signals", daemon=True).start()

    def handle(number: int, _frame: object) -> None:
        wanted.append(signal.Signals(number).name)
        ready.release()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


def _register_commands(tickets: Tickets) -> None:
    """`celery inspect tickets`; the built-in `stats` shows the same under `batchyard`."""

    @inspect_command(name="tickets")  # type: ignore[untyped-decorator]
    def _tickets(state: Any, **_: Any) -> dict[str, Any]:
        """What this consumer holds: tickets, jobs by stage, models."""
        return _report(tickets)


def restrict_control() -> None:
    """Forget what others could do to this consumer over the broker; what remains looks, or turns events on and off.

    Whoever reaches the broker could otherwise end consumers, take queues from them, or read their configuration.
    """
    for name in Panel.data.keys() - HARMLESS_COMMANDS:
        del Panel.data[name]
        Panel.meta.pop(name, None)
