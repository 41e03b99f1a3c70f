"""One consumer: its registration, its models, its pipeline, its end. What Celery adds is in `worker.py`."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from batchyard.broker import Broker, queue_name
from batchyard.errors import BatchyardError, BrokerDown, Unavailable
from batchyard.jobs import ClaimedJob, ErrorInfo, Lane, Outcome, State
from batchyard.payloads import fetch_from, open_objects
from batchyard.scheduling import FairShare, choose
from batchyard.settings import PoolSettings, Settings
from batchyard.store.base import JobStore
from batchyard.telemetry import log_event
from batchyard_consumers.catalog import models_of, queues_of, versions_in
from batchyard_consumers.claiming import HeldTicket, ServedQueue
from batchyard_consumers.device import called, choose_device, shares_of
from batchyard_consumers.drain import Blame, Drain
from batchyard_consumers.executing import Task, open_recorder
from batchyard_consumers.failures import in_a_line
from batchyard_consumers.heartbeat import Heartbeat, SpeedReporter
from batchyard_consumers.host_copies import host_room
from batchyard_consumers.loading import Loader
from batchyard_consumers.meter import Meter
from batchyard_consumers.notices.clouds import Metadata, Notice
from batchyard_consumers.notices.watching import Watch
from batchyard_consumers.pipeline import Pipeline
from batchyard_consumers.pod import Pod, PodMark
from batchyard_consumers.residents import Residents, room_on
from batchyard_consumers.retries import RetryPolicy
from batchyard_consumers.served import Served
from batchyard_consumers.watchdog import Watchdog

URGENT_MS = 10_000
NOTICE_MARGIN_SECONDS = 2.0
"""Of a notice, beyond the drain."""
LEAST_LINGER_SECONDS = 60.0
"""After a notice, unless the process is told to end: the machine may go later than it said."""

log = logging.getLogger(__name__)


class TicketSource(Protocol):
    """What brings tickets: Celery's hub. Every method may be called from any thread and returns at once."""

    def done(self, tickets: Sequence[HeldTicket]) -> None:
        """These tickets are used up, or let go."""

    def refresh(self) -> None:
        """A model was loaded: take up its queues."""

    def reconnect(self) -> None:
        """Nothing has come for too long."""

    def stop(self) -> None:
        """A drain has begun."""


class Consumer:
    """Serves the queues of one pool until it is drained. `on_end(code)` is called once, at the very end."""

    def __init__(
        self,
        settings: Settings,
        pool: PoolSettings,
        *,
        store: JobStore,
        broker: Broker,
        source: TicketSource,
        on_end: Callable[[int], None],
        pod: Pod | None = None,
        zone: str = "",
        metadata: Metadata | None = None,
    ) -> None:
        """`pod` is the one that it runs in, if any; `zone` and `metadata` are its machine's, where they are known."""
        self.pool = pool
        self.settings = settings
        self.device_name = choose_device(pool.device)
        self.versions: list[Served] = versions_in(store, settings, models_of(settings, pool))
        self.queues: list[ServedQueue] = queues_of(self.versions, capacity=pool.capacity)
        self.meter = Meter()
        self._store = store
        self._broker = broker
        self._source = source
        self._on_end = on_end
        self._stopping = threading.Event()
        self._ending = threading.Lock()
        self._told_to_end = threading.Event()
        self._ended = threading.Event()
        self._ends_at = 0.0
        """Not before, by the monotonic clock, unless it is told to end."""
        self._drain: Drain | None = None
        self._blame: Blame | None = None
        self._shares: dict[int, FairShare] = {}
        objects = open_objects(settings)
        recorder = open_recorder(settings, store)
        self.pipeline = Pipeline(
            store=store,
            queues=self.queues,
            device=self.device_name,
            shares=shares_of(self.device_name),
            owner=self._register(),
            retries=RetryPolicy(
                base_seconds=settings.queues.retry_base_seconds, max_seconds=settings.queues.retry_max_seconds
            ),
            meter=self.meter,
            fetch_for=lambda tenant_id: fetch_from(store, objects, tenant_id=tenant_id),
            read_head=self._read_head,
            hint=self._hint,
            on_tickets_done=source.done,
            on_crash=lambda stage, error: self.crash(f"stage {stage}: {type(error).__name__}"),
            on_lost=self._lost,
            recorder=recorder,
        )
        self.heartbeat = Heartbeat(
            store=store,
            pipeline=self.pipeline,
            lease_seconds=settings.queues.lease_seconds,
            register=self._register,
            stats=self.stats,
            beat=self._beat,
        )
        self.heartbeat.zone = zone
        self._pod = pod
        self._watch = None if metadata is None else self._watch_over(metadata, zone=zone)
        self._is_at_risk = False
        self._watchdog = Watchdog(
            self.pipeline,
            waiting_tickets=self._waiting_tickets,
            reconnect=source.reconnect,
            on_hang=self._hang,
        )
        self._speeds = SpeedReporter(store)
        self._residents = Residents(
            self.versions,
            loader=Loader(
                store=store, device=self.device_name, meter=self.meter, on_loaded=self._loaded, recorder=recorder
            ),
            holder=self.pipeline,
            store=store,
            device=self.device_name,
            room=room_on(self.device_name, pool),
            host_room=host_room(self.device_name, pool),
            stopping=self._stopping,
        )

    @property
    def queue_names(self) -> dict[int, str]:
        """Queue id → its name in the broker."""
        return {
            queue.queue_id: queue_name(
                queue.served.settings.name, queue.served.settings.version, Lane.FIRM if queue.is_firm else Lane.TOLERANT
            )
            for queue in self.queues
        }

    def start(self) -> None:
        """Start every thread; models are loaded meanwhile."""
        log_event(
            log,
            "consumer_started",
            pool=self.pool.name,
            device=called(self.device_name),
            models=[served.name for served in self.versions],
        )
        self.pipeline.start()
        for name, body in (("heartbeat", self.heartbeat.run), ("residents", self._residents.run)):
            self.pipeline.spawn(name, body)
        if self._pod is not None:
            mark = PodMark(self._pod, is_busy=lambda: self.pipeline.holding.jobs > 0, stopping=self._stopping)
            self.pipeline.spawn("pod-mark", mark.run)
        if self._watch is not None:
            threading.Thread(target=self._watch.run, name="batchyard-notices", daemon=True).start()

    def stats(self) -> dict[str, Any]:
        """What the heartbeat and remote control tell."""
        for kind, size in {**self.pipeline.device.memory(), **self._residents.memory()}.items():
            self.meter.metrics.device_memory_bytes.labels(kind).set(size)
        stats = self.meter.stats(self.versions, stages=self.pipeline.stages())
        stats["tickets"] = len(self.pipeline.inbox)
        stats["broker"] = self._broker.is_up
        stats["seconds_per_unit"] = self._speeds.told()
        if self._is_at_risk:
            stats["at_risk"] = True
        return stats

    # --- the end ---

    def drain(self, *, reason: str, code: int = 0) -> None:
        """Leave in order; a second call hurries. Returns at once: the end is told to `on_end`."""
        with self._ending:
            if self._told_to_end.is_set() and self._drain is not None:
                self._drain.hurry()
                return
            self._told_to_end.set()
            if self._watch is not None:
                # Whoever gives the signal may have heard of a notice first.
                self._watch.look_soon()
            self._begin_drain(grace_seconds=self.pool.drain_seconds, reason=reason, code=code)

    def heed(self, notice: Notice) -> None:
        """Drain in the time that a notice leaves. A warning that names no time is told, and work goes on: most such
        machines stay for hours."""
        log_event(log, "notice", level=logging.WARNING, reason=notice.reason, in_seconds=notice.in_seconds)
        if notice.in_seconds is None:
            self._is_at_risk = True
            return
        with self._ending:
            self.heartbeat.is_preempted = True
            self._ends_at = time.monotonic() + max(notice.in_seconds, LEAST_LINGER_SECONDS)
            self._begin_drain(
                grace_seconds=max(0.0, notice.in_seconds - NOTICE_MARGIN_SECONDS), reason=notice.reason, code=0
            )

    def _begin_drain(self, *, grace_seconds: float, reason: str, code: int) -> None:
        """Under the lock. One that is under way may have less time from now on."""
        if self._drain is not None:
            self._drain.shorten(grace_seconds=grace_seconds)
            self.heartbeat.tell("draining")
            return
        self._drain = Drain(
            self.pipeline,
            store=self._store,
            broker=self._broker,
            heartbeat=self.heartbeat,
            meter=self.meter,
            grace_seconds=grace_seconds,
            queue_names=self.queue_names,
            blame=lambda: self._blame,
        )
        self._stopping.set()
        self._source.stop()
        threading.Thread(target=self._leave, args=(self._drain, reason, code), name="batchyard-drain").start()

    def crash(self, reason: str) -> None:
        """Something is broken here: hand back what is held and end the process, for another to take over."""
        log_event(log, "consumer_crashed", level=logging.ERROR, reason=reason)
        self.drain(reason=reason, code=1)

    def _leave(self, drain: Drain, reason: str, code: int) -> None:
        try:
            drain.run(reason=reason)
            self._store.close()
            self._broker.close()
        except Exception as error:  # noqa: BLE001  the process ends whatever happens
            log_event(log, "drain_failed", level=logging.ERROR, error=error)
        finally:
            self.pipeline.executing.close()
            self._ended.set()
            # Whoever started this process would start the next one, on a machine that goes.
            self._told_to_end.wait(max(0.0, self._ends_at - time.monotonic()))
            self._on_end(code)

    def _hang(self, task: Task, served: Served) -> None:
        """A model's code beyond its limit: its only job fails with `timeout`; several run alone next time."""
        limit = served.settings.max_run_seconds
        log_event(log, "model_hangs", level=logging.ERROR, model=served.name, jobs=len(task.jobs), limit_seconds=limit)
        try:
            if len(task.jobs) == 1:
                error = ErrorInfo(code="timeout", message=f"the model ran for more than {limit:g} seconds")
                self._store.finish([Outcome(task.jobs[0], State.FAILED, error=error)], owner=task.owner)
            else:
                self._store.release(task.jobs, owner=task.owner, suspect=True)
        except BatchyardError as failed:
            log_event(log, "hang_not_recorded", level=logging.ERROR, reason=failed.message)
        self.crash("a model's code did not end")
        with self._ending:
            if self._drain is not None:
                self._drain.hurry()

    def _lost(self, owner: int, jobs: Sequence[ClaimedJob], error: Exception) -> None:
        """The device was lost with these jobs, which are to blame for that as for the end of a process; the rest is
        handed back."""
        with self._ending:
            if self._blame is None:
                cause = f"lost its device ({in_a_line(error).splitlines()[0]})"
                self._blame = Blame(owner=owner, executing=[job.id for job in jobs], cause=cause)
        self.crash(f"the device was lost: {in_a_line(error)}")

    # --- for the stages ---

    def _register(self) -> int:
        return self._store.register_consumer(
            pool=self.pool.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=called(self.device_name),
            capacity=self.pool.capacity,
            queue_ids=[queue.queue_id for queue in self.queues],
            lease_ms=int(self.settings.queues.lease_seconds * 1000),
        )

    def _watch_over(self, metadata: Metadata, *, zone: str) -> Watch:
        return Watch(
            metadata,
            zone=zone,
            hears_notices=self.pool.capacity == "spot",
            on_zone=lambda found: setattr(self.heartbeat, "zone", found),
            on_notice=self.heed,
            stopping=self._ended,
        )

    def _loaded(self, served: Served) -> None:
        self.pipeline.serve(served)
        if self.heartbeat.state == "starting":
            self.heartbeat.tell("ready")
        self._source.refresh()
        self.pipeline.inbox.changed.set()

    def _beat(self) -> None:
        """After every renewal."""
        self._watchdog.check()
        self._speeds.sample(busy_seconds=self.meter.busy_seconds, is_saturated=self.pipeline.is_saturated)
        try:
            self._speeds.report([served for served in self.versions if served.model is not None])
        except Unavailable as away:
            log_event(log, "speed_not_reported", level=logging.WARNING, reason=away.message)

    def _waiting_tickets(self) -> int:
        """Tickets in the broker's queues of loaded models; 0 while it is away."""
        names = self.queue_names
        try:
            return sum(self._broker.depths([names[q.queue_id] for q in self.queues if q.served.model is not None]))
        except BrokerDown:
            return 0

    def _hint(self, ids: Sequence[int]) -> None:
        try:
            self._broker.hint(ids)
        except BrokerDown:
            return  # whoever waits sweeps the database

    def _read_head(self, queue_id: int, limit: int) -> Sequence[int]:
        lines = self._store.head(queue_id, after={}, jobs=limit, urgent_before_ms=self._store.now_ms() + URGENT_MS)
        share = self._shares.setdefault(queue_id, FairShare())
        return choose(lines, jobs=limit, share=share).ids
