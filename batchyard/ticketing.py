"""How large tickets are; and those published by whoever submits: what is allowed, and the thread that does it.

The dispatcher's leader allows each process to ticket so many jobs of a queue by itself for about a second, as long as
nothing of that queue waits unticketed. That saves a round through the leader; everything else is the leader's.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Protocol

import msgspec

from batchyard.broker import MOST_TICKET_JOBS, TICKET_JOBS, Broker, Listener, cut_tickets, queue_name
from batchyard.errors import BrokerDown
from batchyard.jobs import Accepted, Submission
from batchyard.logs import log_event

if TYPE_CHECKING:
    from batchyard.store.base import ModelVersion
    from batchyard.telemetry import TicketMetrics

CONTROL_TOPIC = "batchyard.control"
GRANT_SECONDS = 1.0
"""How long an allowance is valid."""
MAX_PENDING_JOBS = 100_000
PACE_SECONDS = 0.004
"""Between two publications of tickets that are not full: the first leaves at once, under load ids gather into fewer."""
WAKES_PER_SECOND = 20
KEEP_SECONDS = 1.0
TICKET_SIZE_WEIGHT = 0.1
"""Of the newest publish in the mean size of a ticket."""
TICKET_SECONDS = 0.5
"""Work of one consumer that a ticket names: what a consumer has fetched is out of reach of the others."""
LONGEST_PATIENCE_SECONDS = 3600.0
FIRST_PREFETCH = 4
"""Tickets that a consumer fetches while it has yet to learn how fast it is; later it fetches for half a second."""

log = logging.getLogger(__name__)


def ticket_jobs(seconds_per_job: float | None) -> int:
    """How many jobs a ticket names at most; TICKET_JOBS while nobody knows how long one takes.

    More than TICKET_JOBS only where a consumer gets through several such tickets in the time of one.
    """
    if not seconds_per_job:
        return TICKET_JOBS
    jobs = round(TICKET_SECONDS / seconds_per_job)
    return max(1, min(jobs, max(TICKET_JOBS, min(MOST_TICKET_JOBS, jobs // 4))))


def patience_seconds(*, jobs: float, seconds_per_job: float | None, is_busy: bool, least: float) -> float:
    """How long a job may stay queued after its ticket has left the broker before that ticket counts as lost.

    `jobs` is how many a consumer may have to claim up to it, `is_busy` whether any job of its queue runs: where none
    does, no consumer is working its way through tickets. Twice the work itself, for speed varies; an hour at the most,
    and as long as nobody knows yet how long a job takes.
    """
    if not is_busy:
        return least
    if seconds_per_job is None:
        return LONGEST_PATIENCE_SECONDS
    return max(least, min(2 * jobs * seconds_per_job, LONGEST_PATIENCE_SECONDS))


class Grant(NamedTuple):
    """What the leader allows for one queue."""

    jobs: Annotated[int, msgspec.Meta(ge=0)]
    ticket_jobs: Annotated[int, msgspec.Meta(ge=1, le=MOST_TICKET_JOBS)] = TICKET_JOBS


class Allowance:
    """How many jobs of each queue this process may ticket by itself, and until when. Thread-safe."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._left: dict[int, tuple[int, float]] = {}
        self._taken: dict[int, int] = {}
        self._ticket_jobs: dict[int, int] = {}

    def take(self, queue_id: int, jobs: int) -> bool:
        """Use up some of a queue's allowance; False, with nothing used, where it does not suffice."""
        with self._lock:
            left, until = self._left.get(queue_id, (0, 0.0))
            if jobs > left or self._clock() >= until:
                return False
            self._left[queue_id] = (left - jobs, until)
            self._taken[queue_id] = self._taken.get(queue_id, 0) + jobs
            return True

    def taken(self) -> dict[int, int]:
        """Queue → jobs taken since this was last asked."""
        with self._lock:
            taken, self._taken = self._taken, {}
            return taken

    def grant(self, queue_id: int, grant: Grant, *, seconds: float = GRANT_SECONDS) -> None:
        """Replace a queue's allowance."""
        with self._lock:
            self._ticket_jobs[queue_id] = grant.ticket_jobs
            if grant.jobs > 0:
                self._left[queue_id] = (grant.jobs, self._clock() + seconds)
            else:
                self._left.pop(queue_id, None)

    def revoke(self, queue_id: int) -> None:
        """Take a queue's allowance away."""
        with self._lock:
            self._left.pop(queue_id, None)

    def ticket_jobs(self, queue_id: int) -> int:
        """How many jobs a ticket of this queue names at most, as granted last."""
        return self._ticket_jobs.get(queue_id, TICKET_JOBS)

    def clear(self) -> None:
        with self._lock:
            self._left.clear()


class _Control(msgspec.Struct, frozen=True, omit_defaults=True):
    """What processes tell one another over the broker's fanout."""

    kind: Literal["grant", "want"]
    sender: str
    grants: dict[int, Grant] = {}
    """Queue → what each listener may ticket."""
    seconds: float = GRANT_SECONDS
    queue_ids: tuple[int, ...] = ()
    """Queues for which the sender has jobs, ticketed within its allowance or waiting for the leader."""


_ENCODE = msgspec.json.Encoder().encode
_DECODER = msgspec.json.Decoder(_Control)


class ControlLink:
    """This process's end of the fanout between the leader and those who submit.

    Grants that it hears go to the allowance; what others want goes to `on_want`, as sender and queue ids.
    """

    def __init__(
        self,
        broker: Broker,
        allowance: Allowance,
        *,
        on_want: Callable[[str, Sequence[int]], object] | None = None,
    ) -> None:
        self._broker = broker
        self.allowance = allowance
        self._on_want = on_want
        self.is_quiet = False
        """Set by the leader's own process, which need not be told what it wants."""
        self.ticket_jobs = float(TICKET_JOBS)
        """Jobs in a ticket that a submitter publishes, on average and lately, as this process sees it."""
        self._sender = uuid.uuid4().hex
        self._kept_at = 0.0
        self._woke_at = 0.0
        self._listener = Listener(broker, {CONTROL_TOPIC: self._hear}, name="control")

    def start(self) -> None:
        self._listener.start()

    def close(self) -> None:
        self._listener.close()

    def wait_connected(self, *, timeout_seconds: float) -> bool:
        """Whether it hears by then what is said."""
        return self._listener.wait_connected(timeout_seconds=timeout_seconds)

    def grant(self, grants: Mapping[int, Grant]) -> None:
        """Tell all processes what each of them may ticket; BrokerDown."""
        self._send(_Control("grant", self._sender, grants=dict(grants)))

    def want(self, queue_ids: Iterable[int], *, waiting: bool) -> None:
        """Tell the leader that this process has jobs for these queues: `waiting` for it, or ticketed already.

        Called often, speaks seldom; BrokerDown.
        """
        if self.is_quiet:
            return
        now = time.monotonic()
        if waiting and now - self._woke_at >= 1 / WAKES_PER_SECOND:
            self._woke_at = now
        elif waiting or now - self._kept_at < KEEP_SECONDS:
            return
        self._kept_at = now
        self._send(_Control("want", self._sender, queue_ids=tuple(queue_ids)))

    def _send(self, message: _Control) -> None:
        self._broker.shout(CONTROL_TOPIC, _ENCODE(message))

    def _hear(self, payload: bytes) -> None:
        try:
            message = _DECODER.decode(payload)
        except msgspec.MsgspecError:
            return
        if message.sender == self._sender:
            return
        if message.kind == "grant":
            for queue_id, grant in message.grants.items():
                self.allowance.grant(queue_id, grant, seconds=min(message.seconds, GRANT_SECONDS))
        elif self._on_want is not None:
            self._on_want(message.sender, message.queue_ids)


class Waker(Protocol):
    """Hears which queues have jobs that the leader must ticket; must not block."""

    def __call__(self, queue_ids: Iterable[int]) -> object: ...


class TicketPublisher:
    """Publishes the tickets of committed submissions on a thread of its own.

    While a publish runs, what is offered gathers by queue, so that busy queues get full tickets. Nothing here blocks or
    fails a submitter: where the broker is down or too much waits, ids are dropped, and the leader tickets them later.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        names: Callable[[int], str | None],
        link: ControlLink,
        wake: Waker | None = None,
        metrics: TicketMetrics | None = None,
    ) -> None:
        """`names` knows a queue's broker name by its id, see `queue_names`; `wake` is a dispatcher in this process."""
        self._broker = broker
        self._names = names
        self._link = link
        self._wake = wake
        self._metrics = metrics
        self._changed = threading.Condition()
        self._pending: dict[int, list[int]] = {}
        self._pending_jobs = 0
        self._waiting: set[int] = set()
        self._is_closed = False
        self._is_publishing = False
        self._thread = threading.Thread(target=self._run, name="batchyard-tickets", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Publish what is pending, then stop."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    @property
    def is_busy(self) -> bool:
        """Whether something is being published or waits to be."""
        return self._is_publishing or bool(self._pending)

    def committed(self, submissions: Sequence[Submission], outcomes: Sequence[Accepted | Exception]) -> None:
        """After a commit: ticket what was submitted as `ticketed`, and tell the leader of the rest."""
        tickets: dict[int, list[int]] = {}
        waiting: set[int] = set()
        for submission, outcome in zip(submissions, outcomes, strict=True):
            if isinstance(outcome, Exception) or outcome.replayed:
                continue
            if submission.ticketed:
                tickets.setdefault(submission.queue_id, []).extend(outcome.ids)
            else:
                waiting.add(submission.queue_id)
        if waiting and self._wake is not None:
            self._wake(waiting)
        if tickets or waiting:
            self._offer(tickets, waiting)

    def offer(self, queue_id: int, ids: Sequence[int]) -> None:
        """Have tickets published for jobs that are queued (again)."""
        self._offer({queue_id: list(ids)}, ())

    def _offer(self, tickets: Mapping[int, list[int]], waiting: Iterable[int]) -> None:
        with self._changed:
            was_idle = not self._pending and not self._waiting
            self._waiting.update(waiting)
            for queue_id, ids in tickets.items():
                if self._pending_jobs + len(ids) <= MAX_PENDING_JOBS and not self._is_closed:
                    self._pending.setdefault(queue_id, []).extend(ids)
                    self._pending_jobs += len(ids)
            if was_idle:
                self._changed.notify()

    def _run(self) -> None:
        published_at = 0.0
        while True:
            with self._changed:
                self._is_publishing = False
                while not self._pending and not self._waiting and not self._is_closed:
                    self._changed.wait()
                if not self._pending and self._is_closed:
                    return
                rest = published_at + PACE_SECONDS - time.monotonic()
                if rest > 0 and self._pending_jobs < TICKET_JOBS and not self._is_closed:
                    self._changed.wait(rest)
                pending, self._pending = self._pending, {}
                waiting, self._waiting = self._waiting, set()
                self._pending_jobs = 0
                self._is_publishing = True
            published_at = time.monotonic()
            try:
                self._publish(pending, waiting)
            except BrokerDown:
                # The leader has to ticket these once the broker is back; what follows should wait for it right away.
                self._link.allowance.clear()
                if self._metrics is not None:
                    self._metrics.failures.inc()
            except Exception as error:  # noqa: BLE001  without this thread no ticket leaves the process
                log_event(log, "tickets_dropped", level=logging.ERROR, error=error)

    def _publish(self, pending: Mapping[int, list[int]], waiting: set[int]) -> None:
        size = self._link.allowance.ticket_jobs
        batches = [
            (name, cut_tickets(queue_id, ids, jobs=size(queue_id)))
            for queue_id, ids in pending.items()
            if (name := self._names(queue_id))
        ]
        tickets = self._broker.publish_many(batches) if pending else 0
        jobs = sum(len(ticket.ids) for _, of_queue in batches for ticket in of_queue)
        if tickets:
            self._link.ticket_jobs += (jobs / tickets - self._link.ticket_jobs) * TICKET_SIZE_WEIGHT
        if self._metrics is not None and tickets:
            self._metrics.published.labels("allowance").inc(tickets)
            self._metrics.jobs.labels("allowance").inc(jobs)
        if waiting:
            self._link.want(waiting, waiting=True)
        if pending:
            self._link.want(pending, waiting=False)


def queue_names(versions: Iterable[ModelVersion]) -> dict[int, str]:
    """Queue id → broker name, of all queues of these versions."""
    return {
        queue_id: queue_name(version.model, version.version, lane)
        for version in versions
        for lane, queue_id in version.queue_ids.items()
    }
