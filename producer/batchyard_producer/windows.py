"""Keeps every queue's window full: looks at the broker's depths, chooses, publishes, and allows what is left away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batchyard.broker import Broker
from batchyard.errors import BrokerDown
from batchyard.jobs import State
from batchyard.scheduling import Choice, choose
from batchyard.settings import Settings
from batchyard.store.base import JobStore, ModelVersion
from batchyard.telemetry import DispatcherMetrics
from batchyard.ticketing import GRANT_SECONDS, ControlLink, Grant, queue_names, ticket_jobs
from batchyard_producer.outstanding import LineKey, Outstanding
from batchyard_producer.stragglers import Stragglers
from batchyard_producer.window import REFILL_BELOW, Pace, jobs_allowed, learned_seconds_per_job, retry_seconds

if TYPE_CHECKING:
    from batchyard_producer.dispatcher import Timing

ROUND_JOBS = 8192
"""Jobs chosen by one look at a queue's head."""
MAX_LOOKS = 6
"""Looks at one queue's head in a round; the other queues have their turn then."""
STRAGGLERS = 256
"""Stragglers of a line looked at; where there are so many, the line is gone through again instead."""
URGENT_SECONDS = 10.0
"""A latest safe start nearer than this lets a job go ahead."""
MEMBER_SECONDS = 3.0
SETTLE_SECONDS = 0.05
"""RabbitMQ takes a moment until a queue's depth counts what was published to it."""


@dataclass
class _Queue:
    """One queue with a live consumer."""

    id: int
    name: str
    tickets: Outstanding
    stragglers: Stragglers
    pace: Pace
    consumers: frozenset[int] = frozenset()
    version: ModelVersion | None = None
    may_wait: bool = True
    """Jobs may wait that nobody has ticketed."""
    drained: int = 0
    """Jobs whose tickets left the broker since the last look."""
    is_starved: bool = False
    window: int = 0
    lines: frozenset[LineKey] = frozenset()
    """Lines that had queued jobs at the last look at the backlog."""
    mean_cost: float = 1.0
    straggle_at: float = 0.0
    labels: tuple[str, str] = field(default=("", ""))

    @property
    def ticket_jobs(self) -> int:
        return ticket_jobs(self.tickets.seconds_per_job)


class Windows:
    """Owned by the dispatcher's thread, but for `mark` and `note_member`."""

    def __init__(
        self,
        store: JobStore,
        broker: Broker,
        settings: Settings,
        *,
        timing: Timing,
        link: ControlLink,
        metrics: DispatcherMetrics | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._broker = broker
        self._seconds = settings.queues.window_seconds
        self._timing = timing
        self._link = link
        self._metrics = metrics
        self._clock = clock
        self._retry = retry_seconds(self._seconds, least=timing.retry)
        self._settle = SETTLE_SECONDS if broker.url.startswith(("amqp", "pyamqp")) else 0.0
        self._queues: dict[int, _Queue] = {}
        """Every queue that has had a live consumer since this process leads."""
        self._served: list[_Queue] = []
        """Those that have one now."""
        self._fleet_at = 0.0
        self._backlog_at = 0.0
        self._grant_at = 0.0
        self._granted: dict[int, Grant] = {}
        self._marked: set[int] = set()
        self._members: dict[str, float] = {}
        self.pause = 0.0
        """Seconds until windows want to be looked at again."""

    # --- thread-safe ---

    def mark(self, queue_ids: Iterable[int]) -> None:
        """These queues have jobs that nobody has ticketed."""
        self._marked.update(queue_ids)
        # At once, before the next round: what waits unticketed must not be overtaken.
        for queue_id in queue_ids:
            self._link.allowance.revoke(queue_id)

    def note_member(self, sender: str) -> None:
        """Another process submits to queues and shares in the allowance."""
        self._members[sender] = self._clock()

    # --- the dispatcher's thread ---

    def start_over(self) -> None:
        """Forget everything: this process has begun, or ceased, to lead."""
        self._queues.clear()
        self._served.clear()
        self._granted.clear()
        self._fleet_at = self._backlog_at = self._grant_at = 0.0

    def keep(self) -> None:
        """One round over all queues. Unavailable and BrokerDown leave everything so that the next round goes on."""
        now = self._clock()
        self._look_at_fleet(now)
        self._look_at_backlog(now)
        self._heed_marks()
        self._measure(now)
        for queue in self._served:
            self._refill(queue)
            self._look_for_stragglers(queue)
        self._allow(now)
        self.pause = self._next_pause()

    def requeue(self, queued: Mapping[int, list[int]], reason: str) -> None:
        """Ticket jobs that the leader has made queued again, of queues that have a live consumer. Never raises."""
        served = {queue.id: queue for queue in self._served}
        for queue_id, ids in queued.items():
            if queue_id not in served:
                continue
            try:
                self._publish(served[queue_id], ids, reason=reason)
            except BrokerDown:
                # They stand below the cursors: the look for stragglers finds them.
                return

    def _look_at_fleet(self, now: float) -> None:
        """Which queues have a live consumer, how many, and how fast."""
        if now < self._fleet_at:
            return
        now_ms = self._store.now_ms()
        serving: dict[int, set[int]] = {}
        for consumer in self._store.consumers():
            if consumer.state == "ready" and consumer.lease_until_ms > now_ms:
                for queue_id in consumer.queue_ids:
                    serving.setdefault(queue_id, set()).add(consumer.id)
        versions = {queue_id: v for v in self._store.models() for queue_id in v.queue_ids.values()}
        names = queue_names(versions.values())
        self._served = []
        for queue_id, consumers in sorted(serving.items()):
            if queue_id in names:
                queue = self._queues.get(queue_id) or self._add(queue_id, names[queue_id], versions[queue_id])
                if not queue.consumers <= consumers:
                    queue.tickets.doubt(now=now)
                queue.consumers, queue.version = frozenset(consumers), versions[queue_id]
                queue.tickets.consumers = len(consumers)
                self._served.append(queue)
        self._fleet_at = now + self._timing.fleet

    def _add(self, queue_id: int, name: str, version: ModelVersion) -> _Queue:
        lane = next(lane for lane, of_lane in version.queue_ids.items() if of_lane == queue_id)
        queue = _Queue(
            id=queue_id,
            name=name,
            tickets=Outstanding(remember_seconds=self._retry),
            stragglers=Stragglers(first_delay_seconds=self._retry),
            pace=Pace(seconds=max(self._seconds, 0.1)),
            labels=(version.name, lane.word),
        )
        self._queues[queue_id] = queue
        return queue

    def _look_at_backlog(self, now: float) -> None:
        """Which lines have queued jobs at all: what nobody told us of is found here."""
        if now < self._backlog_at or not self._served:
            return
        lines: dict[int, set[LineKey]] = {}
        sums: dict[int, tuple[int, int]] = {}
        busy: set[int] = set()
        for row in self._store.backlog(queue_ids=[queue.id for queue in self._served]):
            if row.state is State.RUNNING and row.jobs > 0:
                busy.add(row.queue_id)
            if row.state is State.QUEUED and row.priority >= 0 and row.jobs > 0:
                lines.setdefault(row.queue_id, set()).add((row.tenant_id, row.priority))
                jobs, cost = sums.get(row.queue_id, (0, 0))
                sums[row.queue_id] = (jobs + row.jobs, cost + row.cost)
        for queue in self._served:
            queue.tickets.is_busy = queue.id in busy
            queue.lines = frozenset(lines.get(queue.id, ()))
            if queue.lines:
                queue.may_wait = True
                jobs, cost = sums[queue.id]
                queue.mean_cost = cost / jobs
        self._backlog_at = now + (self._timing.straggle if lines else self._timing.idle)

    def _heed_marks(self) -> None:
        marked, self._marked = self._marked, set()
        for queue_id in marked:
            queue = self._queues.get(queue_id)
            if queue is not None:
                queue.may_wait = True

    def _measure(self, now: float) -> None:
        """How many tickets are out, and how large each window should be."""
        taken = self._link.allowance.taken()
        depths = self._broker.depths([queue.name for queue in self._served])
        for queue, depth in zip(self._served, depths, strict=True):
            tickets = queue.tickets
            had_some = tickets.jobs > 0
            tickets.seconds_per_job = learned_seconds_per_job(
                seconds_per_unit=queue.version.seconds_per_unit if queue.version else None, mean_cost=queue.mean_cost
            )
            tickets.foreign_ticket_jobs = min(self._link.ticket_jobs, queue.ticket_jobs)
            # What submitters ticketed is on its way through the queue as well: it counts as drained when it comes, for
            # where it is not, the depth rises and the allowance ends.
            queue.drained = tickets.trim(depth, now=now, settled_before=now - self._settle) + taken.get(queue.id, 0)
            queue.is_starved = queue.may_wait and had_some and tickets.jobs == 0
            is_busy = had_some and tickets.jobs > 0
            queue.pace.observe(queue.drained, now=now, is_busy=is_busy, is_starved=queue.is_starved)
            seconds = tickets.seconds_per_job
            learned = None if seconds is None else len(queue.consumers) / seconds
            queue.window = queue.pace.window_jobs(now=now, learned_per_second=learned)

    def _refill(self, queue: _Queue) -> None:
        """Ticket the next jobs of a queue whose window has fallen low."""
        if not queue.may_wait or queue.tickets.jobs >= REFILL_BELOW * queue.window:
            return
        for _ in range(MAX_LOOKS):
            room = queue.window - queue.tickets.jobs
            if room <= 0:
                return
            choice = self._choose(queue, jobs=min(room, ROUND_JOBS))
            now = self._clock()
            if choice.ids:
                self._publish(queue, choice.ids, reason="window", cursors=choice.cursors)
            else:
                queue.tickets.cursors.update(choice.cursors)
            queue.tickets.overlook(choice.skipped, now=now)
            queue.may_wait = not choice.is_complete
            if choice.is_complete or not (choice.ids or choice.cursors):
                return

    def _choose(self, queue: _Queue, *, jobs: int) -> Choice:
        now_ms = self._store.now_ms()
        lines = self._store.head(
            queue.id,
            after=queue.tickets.cursors,
            jobs=jobs,
            urgent_before_ms=now_ms + round(URGENT_SECONDS * 1000),
        )
        return choose(
            lines,
            jobs=jobs,
            share=queue.tickets.share,
            taken=queue.tickets.known,
            ticketed_since_ms=now_ms - round(queue.tickets.ticketed_seconds * 1000),
        )

    def _look_for_stragglers(self, queue: _Queue) -> None:
        """Jobs that the cursors have passed and that nobody has claimed."""
        now = self._clock()
        if now < queue.straggle_at or not queue.lines:
            return
        # One short query a line: with many lines less often.
        queue.straggle_at = now + self._timing.straggle * max(1.0, len(queue.lines) / 50)
        below = {key: bound for key, bound in queue.tickets.below().items() if key in queue.lines}
        if not below:
            return
        ids = self._store.stragglers(queue.id, below=below, limit=STRAGGLERS)
        due = queue.stragglers.due(ids, known=queue.tickets.known, now=now)
        if len(due) >= STRAGGLERS:
            queue.tickets.set_back(due[0])
            queue.may_wait = True
        elif due:
            self._publish(queue, due, reason="straggler")

    def _publish(
        self, queue: _Queue, ids: list[int], *, reason: str, cursors: Mapping[LineKey, int] | None = None
    ) -> None:
        try:
            tickets = self._broker.publish(queue.name, queue.id, ids, ticket_jobs=queue.ticket_jobs)
        except BrokerDown:
            if self._metrics is not None:
                self._metrics.tickets.failures.inc()
            raise
        queue.tickets.publish(ids, ticket_jobs=queue.ticket_jobs, now=self._clock(), cursors=cursors)
        if self._metrics is not None:
            self._metrics.tickets.published.labels(reason).inc(tickets)
            self._metrics.tickets.jobs.labels(reason).inc(len(ids))

    def _allow(self, now: float) -> None:
        """Let processes ticket by themselves where nothing waits and there is room; elsewhere take that back."""
        members = self._count_members(now)
        grants = {}
        for queue in self._served:
            room = 0
            if not queue.may_wait and queue.id not in self._marked:
                room = jobs_allowed(window=queue.window, outstanding=queue.tickets.jobs, members=1 + members)
            grants[queue.id] = Grant(room, queue.ticket_jobs)
            self._link.allowance.grant(queue.id, grants[queue.id])
            if self._metrics is not None:
                self._metrics.outstanding_jobs.labels(*queue.labels).set(queue.tickets.jobs)
        revoked = any(
            self._granted[queue_id].jobs and not grant.jobs
            for queue_id, grant in grants.items()
            if queue_id in self._granted
        )
        if members and grants and (now >= self._grant_at or revoked):
            self._link.grant(grants)
            self._granted = grants
            self._grant_at = now + 0.4 * GRANT_SECONDS

    def _count_members(self, now: float) -> int:
        for sender, heard_at in list(self._members.items()):
            if now - heard_at > MEMBER_SECONDS:
                self._members.pop(sender, None)
        return len(self._members)

    def _next_pause(self) -> float:
        waiting = [queue for queue in self._served if queue.may_wait]
        if any(queue.is_starved or queue.tickets.jobs < queue.window / 2 for queue in waiting):
            return self._timing.hurried
        if any(queue.drained for queue in self._served):
            return self._timing.busy
        return self._timing.idle
