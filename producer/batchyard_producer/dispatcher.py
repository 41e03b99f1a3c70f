"""The dispatcher: keeps the heads of queues ticketed and does the store's chores. Every API hosts one; one leads."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from batchyard.broker import Broker
from batchyard.errors import BrokerDown, Unavailable
from batchyard.logs import log_event
from batchyard.settings import Settings
from batchyard.store.base import JobStore
from batchyard.telemetry import DispatcherMetrics
from batchyard.ticketing import Allowance, ControlLink
from batchyard_producer.chores import Chores
from batchyard_producer.windows import Windows

LEASE_NAME = "dispatcher"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The dispatcher's own clockwork, in seconds; tests shorten it."""

    lease: float = 5.0
    """Of leadership: a leader that dies is followed after this long."""
    lead: float = 1.5
    """Between renewals, and between the attempts of those who do not lead."""
    idle: float = 0.5
    """Between rounds while nothing happens."""
    busy: float = 0.05
    """Between rounds while windows are well filled."""
    hurried: float = 0.01
    """Between rounds while a window runs dry, and after a call of `notify`."""
    backoff: float = 0.5
    """After the database, or the broker, was found to be away."""
    fleet: float = 0.5
    """Between looks at the consumers and the models."""
    straggle: float = 0.25
    """Between looks at the backlog, and for stragglers, while something is queued."""
    retry: float = 5.0
    """Least time before a job is ticketed again."""
    reap: float = 5.0
    promote: float = 0.5
    expire: float = 1.0
    firm: float = 2.0
    """Between moves of tolerant jobs to the firm lane."""
    sweep: float = 1.0
    fold: float = 0.025
    """Between folds while there is something to fold, where readers wait for it (Postgres)."""
    fold_idle: float = 2.0
    retire: float = 60.0
    retire_step: float = 0.2
    """Between the steps of one round of retention."""
    payloads: float = 60.0
    """Between sweeps of the payloads that nobody needs."""
    progress: float = 10.0
    """Between sweeps of what was told of jobs that do not run any more."""
    computations: float = 10.0
    """Between looks for results that serve nobody any more, where the last one found none."""
    webhooks: float = 1.0
    """Between looks for webhooks that are due, and for bulks that are finished."""


class Dispatcher:
    """Runs in a thread: `run`, or `start` and `close`. Everything not said to be thread-safe belongs to that thread.

    No exception of the store or the broker ends it: it says so once per outage, waits, and goes on. Two that lead at
    the same time, as after a pause of one, do no harm beyond tickets published twice.
    """

    def __init__(
        self,
        store: JobStore,
        broker: Broker,
        settings: Settings,
        *,
        metrics: DispatcherMetrics | None = None,
        timing: Timing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._timing = timing or Timing()
        self._clock = clock
        self.holder = secrets.randbits(62)
        self.allowance = Allowance(clock=clock)
        """What this process may ticket by itself."""
        self.link = ControlLink(broker, self.allowance, on_want=self._hear_want)
        """To be given to this process's `TicketPublisher`."""
        self._windows = Windows(
            store, broker, settings, timing=self._timing, link=self.link, metrics=metrics, clock=clock
        )
        self._chores = Chores(
            store, settings, timing=self._timing, requeued=self._windows.requeue, metrics=metrics, clock=clock
        )
        self._leads: bool | None = None
        self._lead_at = 0.0
        self._outages: dict[str, bool] = {}
        self._windows_at = 0.0
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._is_hinted = False
        self._is_hurried = False
        self._thread: threading.Thread | None = None

    # --- thread-safe ---

    @property
    def is_leader(self) -> bool | None:
        """None while the database has not said yet who leads."""
        return self._leads

    def notify(self, queue_ids: Iterable[int]) -> None:
        """Jobs of these queues were committed that nobody has ticketed. Cheap; call it after the commit."""
        self._windows.mark(queue_ids)
        self._is_hurried = True
        self._wake.set()

    def hinted(self, _ids: Sequence[int] = ()) -> None:
        """Jobs were completed, so there may be something to fold. Cheap; wakes only where readers wait for that."""
        if self._chores.folds_promptly and not self._is_hinted:
            self._is_hinted = True
            self._wake.set()

    def start(self) -> None:
        self._thread = threading.Thread(target=self.run, args=(self._stop,), name="batchyard-dispatcher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and hand leadership over at once."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    # --- its own thread ---

    def run(self, stop: threading.Event) -> None:
        """Lead, or wait to lead, until `stop` is set, which is looked at several times a second."""
        self.link.start()
        try:
            while not stop.is_set():
                began = self._clock()
                pause = self.round()
                self._wake.wait(pause)
                self._wake.clear()
                # However often it is woken, a round begins at most this often.
                stop.wait(max(0.0, began + self._timing.hurried - self._clock()))
        finally:
            self.resign()
            self.link.close()

    def round(self) -> float:
        """One round of what is due; returns the seconds until the next, unless something happens."""
        now = self._clock()
        if not self._guard(self._lead):
            return self._timing.backoff
        if not self._leads:
            return self._timing.idle
        is_hinted, self._is_hinted = self._is_hinted, False
        is_hurried, self._is_hurried = self._is_hurried, False
        if not self._guard(lambda: self._chores.run(is_active=is_hinted or is_hurried)):
            return self._timing.backoff
        if is_hurried or now >= self._windows_at:
            works = self._guard(self._windows.keep)
            self._windows_at = self._clock() + (self._windows.pause if works else self._timing.backoff)
            if works:
                self._note_recovery()
        if self._metrics is not None:
            self._metrics.round_seconds.observe(self._clock() - now)
        return max(0.0, min(self._windows_at - self._clock(), self._chores.pause))

    def _lead(self) -> None:
        """Take or keep the lease."""
        now = self._clock()
        if now < self._lead_at:
            return
        leads = self._store.lead(LEASE_NAME, holder=self.holder, lease_ms=round(self._timing.lease * 1000)) > 0
        self._chores.database_answered()
        self._lead_at = now + self._timing.lead
        if leads != self._leads:
            log_event(log, "leadership_changed", leads=leads)
            self._change(leads=leads)

    def _change(self, *, leads: bool) -> None:
        self._leads = leads
        self.link.is_quiet = leads
        self.allowance.clear()
        self._windows.start_over()
        if self._metrics is not None:
            self._metrics.leader.set(int(leads))

    def resign(self) -> None:
        """Hand leadership over, where it is ours."""
        if self._leads:
            self._change(leads=False)
            self._guard(lambda: self._store.resign(LEASE_NAME, holder=self.holder))

    def _guard(self, step: Callable[[], object]) -> bool:
        """Run a step; false, said once per outage, where it did not work."""
        try:
            step()
        except Exception as error:  # noqa: BLE001  the thread must outlive every fault
            self._note_outage(error)
            return False
        return True

    def _note_outage(self, error: Exception) -> None:
        if isinstance(error, BrokerDown):
            part = "broker"
            self.allowance.clear()
        elif isinstance(error, Unavailable):
            part = "database"
            self._chores.database_failed()
        else:
            part = type(error).__name__
        if part not in self._outages:
            self._outages[part] = True
            unexpected = error if part not in {"broker", "database"} else None
            level = logging.ERROR if unexpected else logging.WARNING
            log_event(log, "dispatcher_failed", level=level, error=unexpected, part=part, reason=str(error))

    def _note_recovery(self) -> None:
        if self._outages:
            log_event(log, "dispatcher_recovered", parts=list(self._outages))
            self._outages.clear()

    def _hear_want(self, sender: str, queue_ids: Sequence[int]) -> None:
        """On the link's thread: another process has jobs for these queues."""
        if self._leads:
            self._windows.note_member(sender)
            self.notify(queue_ids)
