"""Tickets become claimed jobs: everything at hand in one claim, within what this consumer may hold.

Where tickets stay away (a wiped or silent broker) the head of each queue is claimed straight from the database.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchyard.errors import Unavailable
from batchyard.jobs import ClaimedJob, State
from batchyard.store.base import JobStore
from batchyard.telemetry import log_event
from batchyard_consumers.channels import Channel, Closed
from batchyard_consumers.held import Chunk, Holding
from batchyard_consumers.meter import Meter
from batchyard_consumers.pools import by_queue
from batchyard_consumers.served import Served

CLAIM_JOBS = 2048
"""In one transaction at most."""
SILENCE_SECONDS = 1.0
"""Without a ticket for this long, look at the database."""
LONGEST_SILENCE_SECONDS = 4.0
"""Between two looks that found nothing."""
LONGEST_PAUSE_SECONDS = 2.0
"""Between two attempts while the database is away."""
STALE_TICKET_SECONDS = 10.0
"""Tickets held longer, while nothing of their queue is claimed, are let go: others may get to their jobs sooner."""

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class HeldTicket:
    """A ticket in this consumer's hands. `message` belongs to the hub's thread."""

    queue_id: int
    ids: Sequence[int]
    """Not claimed yet."""
    message: Any = None
    received_at: float = field(default_factory=time.monotonic)
    jobs: int = 0
    """Claimed through it so far."""


class Inbox:
    """Tickets by queue, in the order of arrival. The hub's thread puts, the claiming thread takes."""

    def __init__(self, changed: threading.Event, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tickets: dict[int, deque[HeldTicket]] = {}
        self._clock = clock
        self.changed = changed
        """Set when there may be something to do: a ticket, room, a model loaded, the end."""
        self.last_ticket_at = clock()

    def put(self, ticket: HeldTicket) -> None:
        self._tickets.setdefault(ticket.queue_id, deque()).append(ticket)
        self.last_ticket_at = self._clock()
        self.changed.set()

    def of(self, queue_id: int) -> deque[HeldTicket]:
        """The tickets of one queue; emptied from the left by the claiming thread alone."""
        return self._tickets.setdefault(queue_id, deque())

    def __len__(self) -> int:
        return sum(len(tickets) for tickets in self._tickets.values())

    def take_all(self) -> list[HeldTicket]:
        """Everything, for handing back."""
        taken: list[HeldTicket] = []
        for tickets in list(self._tickets.values()):
            while tickets:
                taken.append(tickets.popleft())
        return taken


@dataclass(frozen=True, kw_only=True)
class ServedQueue:
    """One queue in the order served."""

    queue_id: int
    served: Served
    is_firm: bool


HeadReader = Callable[[int, int], Sequence[int]]
"""(queue, limit) → ids at its head, in scheduling order."""


class Claimer:
    """The first stage; `run` is the body of its thread."""

    def __init__(
        self,
        *,
        store: JobStore,
        queues: Sequence[ServedQueue],
        inbox: Inbox,
        chunks: Channel[Chunk],
        holding: Holding,
        meter: Meter,
        owner: Callable[[], int],
        read_head: HeadReader,
        on_done: Callable[[Sequence[HeldTicket]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._queues = queues
        self._versions = list({id(queue.served): queue.served for queue in queues}.values())
        self._by_queue = by_queue(self._versions)
        self._inbox = inbox
        self._chunks = chunks
        self._holding = holding
        self._meter = meter
        self._owner = owner
        self._read_head = read_head
        self._on_done = on_done
        self._clock = clock
        self._is_stopped = False
        self._claiming = threading.Lock()
        """Held from the look at what may be claimed until it is."""
        self._looked_at = clock()
        self._silence = SILENCE_SECONDS
        self._more_is_queued = False
        """The last look at the database found work: the next one waits for room alone."""
        self._pause = 0.0
        self._claimed_at: dict[int, float] = {}
        """Queue → when a ticket of it was last claimed."""

    def run(self) -> None:
        """Claim until stopped (raises Closed)."""
        changed = self._inbox.changed
        while not self._is_stopped:
            changed.clear()
            try:
                if self.step():
                    continue
                self._pause = 0.0
            except Unavailable as away:
                self._pause = min(LONGEST_PAUSE_SECONDS, max(0.1, 2 * self._pause))
                log_event(log, "claim_failed", level=logging.WARNING, reason=away.message, retry_in=self._pause)
            changed.wait(self._pause or self._until_look())
        raise Closed

    def stop(self) -> None:
        """Claim nothing more; the claim in progress still ends."""
        self._is_stopped = True
        self._inbox.changed.set()

    def leave_out(self, served: Served) -> None:
        """Claim nothing more of a version; once this returns, no claim of it is under way."""
        with self._claiming:
            served.is_leaving = True

    def step(self) -> bool:
        """One claim, from tickets or, after a silence, from the database; whether there was anything to claim."""
        with self._claiming:
            return self._step()

    def _step(self) -> bool:
        tickets, requests = self._gather()
        if requests:
            self._silence = SILENCE_SECONDS
            self._more_is_queued = False
            self._claim(requests, kind="ticket")
            self._settle(tickets, requests)
            return True
        return self._is_silent() and self._claim_head()

    def _until_look(self) -> float:
        quiet_since = max(self._inbox.last_ticket_at, self._looked_at)
        return max(0.01, quiet_since + self._silence - self._clock())

    def _is_silent(self) -> bool:
        """Whether to look at the database: no ticket came for a while, and the last look is as old or found work."""
        now = self._clock()
        if len(self._inbox) or now < self._inbox.last_ticket_at + SILENCE_SECONDS:
            return False
        if self._more_is_queued:
            return any(self._has_room(queue) for queue in self._queues)
        return now >= self._looked_at + self._silence

    # --- tickets ---

    def _gather(self) -> tuple[list[HeldTicket], list[tuple[int, Sequence[int]]]]:
        """What to claim now: firm queues first, and tolerant ones only while no firm ticket is left over."""
        tickets: list[HeldTicket] = []
        requests: list[tuple[int, Sequence[int]]] = []
        left = CLAIM_JOBS
        taken: dict[str, int] = {}
        firm_is_left = False
        for queue in self._queues:
            waiting = self._inbox.of(queue.queue_id)
            if not waiting or (firm_is_left and not queue.is_firm):
                continue
            room = self._holding.room(queue.served, self._versions) - taken.get(queue.served.name, 0)
            if not queue.served.may_claim:
                room = 0
            least = self._holding.least_claim(queue.served, self._versions)
            is_left = False
            for ticket in list(waiting):
                share = min(room, left)
                is_left = share < len(ticket.ids)
                # A sliver of a ticket is not worth a transaction.
                if share <= 0 or (is_left and share < least):
                    break
                ids = ticket.ids[:share]
                tickets.append(ticket)
                requests.append((ticket.queue_id, ids))
                room -= len(ids)
                left -= len(ids)
                taken[queue.served.name] = taken.get(queue.served.name, 0) + len(ids)
            firm_is_left = firm_is_left or (queue.is_firm and is_left)
        self._drop_stale()
        return tickets, requests

    def _settle(self, tickets: Sequence[HeldTicket], requests: Sequence[tuple[int, Sequence[int]]]) -> None:
        """The claim is committed: acknowledge the tickets that are used up."""
        done: list[HeldTicket] = []
        now = self._clock()
        for ticket, (queue_id, ids) in zip(tickets, requests, strict=True):
            self._claimed_at[queue_id] = now
            ticket.ids = ticket.ids[len(ids) :]
            if not ticket.ids:
                waiting = self._inbox.of(queue_id)
                if waiting and waiting[0] is ticket:
                    waiting.popleft()
                done.append(ticket)
        if done:
            self._on_done(done)

    def _drop_stale(self) -> None:
        """Let go of the tickets of a queue that this consumer does not get to. Their jobs are still queued, and told of
        again."""
        oldest_kept = self._clock() - STALE_TICKET_SECONDS
        dropped: list[HeldTicket] = []
        for queue in self._queues:
            waiting = self._inbox.of(queue.queue_id)
            if self._claimed_at.get(queue.queue_id, 0.0) > oldest_kept or self._has_room(queue):
                continue
            while waiting and waiting[0].received_at < oldest_kept:
                dropped.append(waiting.popleft())
        if dropped:
            self._on_done(dropped)

    def _has_room(self, queue: ServedQueue) -> bool:
        """Whether a batch of this queue's jobs may be claimed."""
        served = queue.served
        return served.may_claim and self._holding.room(served, self._versions) >= served.speed.batch_jobs

    # --- the idle claim ---

    def _claim_head(self) -> bool:
        """Claim from the database what no ticket told of; whether anything was found."""
        self._looked_at = self._clock()
        requests: list[tuple[int, Sequence[int]]] = []
        ready = [queue for queue in self._queues if queue.served.may_claim]
        rows = self._store.backlog(queue_ids=[queue.queue_id for queue in ready]) if ready else []
        queued = {row.queue_id for row in rows if row.state is State.QUEUED and row.jobs > 0}
        left = CLAIM_JOBS
        has_room = False
        for queue in ready:
            # Firm first: a tolerant queue is looked at once the firm ones are empty.
            if queue.queue_id not in queued or (requests and not queue.is_firm):
                continue
            limit = min(left, self._holding.room(queue.served, self._versions))
            has_room = has_room or limit > 0
            ids = self._read_head(queue.queue_id, limit) if limit > 0 else ()
            if ids:
                requests.append((queue.queue_id, ids))
                left -= len(ids)
        found = self._claim(requests, kind="idle") if requests else 0
        # Queued but not claimable (paused, or claimed by others meanwhile) is looked at again after a silence.
        self._more_is_queued = found > 0 or (bool(queued) and not has_room)
        self._silence = min(LONGEST_SILENCE_SECONDS, 2 * self._silence) if not found else SILENCE_SECONDS
        return found > 0

    # --- both ---

    def _claim(self, requests: Sequence[tuple[int, Sequence[int]]], *, kind: str) -> int:
        owner = self._owner()
        jobs = self._store.claim(requests, owner=owner)
        now_ms, now = self._store.now_ms(), self._clock()
        self._meter.counted_claim(kind, len(jobs))
        for served, group in self._by_version(jobs):
            self._holding.claimed(served, group)
            self._meter.claimed(served, group, now_ms=now_ms)
            self._chunks.put(Chunk(served=served, owner=owner, jobs=group, claimed_at=now))
        return len(jobs)

    def _by_version(self, jobs: Sequence[ClaimedJob]) -> Sequence[tuple[Served, Sequence[ClaimedJob]]]:
        if not jobs:
            return ()
        queue_ids = {job.queue_id for job in jobs}
        if len({self._by_queue[queue_id].name for queue_id in queue_ids}) == 1:
            return [(self._by_queue[jobs[0].queue_id], jobs)]
        groups: dict[str, list[ClaimedJob]] = {}
        for job in jobs:
            groups.setdefault(self._by_queue[job.queue_id].name, []).append(job)
        return [(self._by_queue[group[0].queue_id], group) for group in groups.values()]


def names_of_queues(queues: Sequence[ServedQueue]) -> Mapping[int, str]:
    """Queue id → the name in logs and remote control."""
    return {queue.queue_id: f"{queue.served.name}.{'firm' if queue.is_firm else 'tolerant'}" for queue in queues}
