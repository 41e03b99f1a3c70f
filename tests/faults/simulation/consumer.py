"""A consumer of the simulation: the writes of a real one, in any order, and its ways to die."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from batchyard.errors import Unavailable
from batchyard.jobs import ClaimedJob, ErrorInfo, Outcome, State
from batchyard.scheduling import FairShare, choose
from batchyard.sharing import Computed, Division
from batchyard_consumers.retries import RetryPolicy
from tests.faults.simulation.parts import Link

if TYPE_CHECKING:
    from tests.faults.simulation.world import World

LEASE_SECONDS = 3.0
RETRIES = RetryPolicy(base_seconds=1.0, max_seconds=4.0, draw=lambda _low, high: high)

KEEP_MS = 20_000
"""How long a result serves others."""

Write = Callable[[], object]


def answer(job_id: int, body: bytes) -> bytes:
    """The result of an input, which names both, so that crossed results show."""
    return b'{"of": %d, "given": %b}' % (job_id, body)


def _served(job: ClaimedJob, result: Computed) -> Outcome:
    return Outcome(job, State.SUCCEEDED, result.body, result.format, cost=result.cost, computed_by=result.job_id)


class SimulatedConsumer:
    """Holds jobs, runs them, writes. What `run` finds in an input decides how the run goes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.link = Link(world.store)
        self.held: list[ClaimedJob] = []
        self.done: list[Outcome] = []
        """Outcomes not written yet."""
        self.is_paused = False
        self.stuck_before: str | None = None
        """`run` or `write`: it gets no further."""
        self.owner = self._register()

    def _register(self) -> int:
        owner = self._world.store.register_consumer(
            pool="p",
            host="h",
            pid=1,
            device="cpu",
            capacity="on_demand",
            queue_ids=list(self._world.names),
            lease_ms=round(LEASE_SECONDS * 1000),
        )
        self._world.store.renew(owner, lease_ms=round(LEASE_SECONDS * 1000), state="ready", stats={})
        return owner

    def go_on(self, *, idly: bool) -> None:
        """What it does all the time: claim, run everything, write. `idly`: also without a ticket."""
        self.take_tickets()
        if idly and not self.held:
            self.claim_head()
        while self.held and self.stuck_before != "run" and self in self._world.consumers:
            self.run(4, is_told=True)
        if self.stuck_before is None and self in self._world.consumers:
            self.write()

    # --- the lease ---

    def beat(self) -> None:
        """One renewal. Who was reaped drops everything and starts anew; what was cancelled is given up."""
        with suppress(Unavailable):
            renewal = self.link.renew(self.owner, lease_ms=round(LEASE_SECONDS * 1000), state="ready", stats={})
            if not renewal.alive:
                self.held.clear()
                self.done.clear()
                self.owner = self._register()
                return
            cancelled = [job for job in self.held if job.id in set(renewal.cancelled)]
            self.held = [job for job in self.held if job not in cancelled]
            self.done += [Outcome(job, State.CANCELLED) for job in cancelled]

    # --- claims ---

    def take_tickets(self, *, dies: bool = False) -> None:
        """Claim what the oldest ticket of each queue names; they are gone once that is committed."""
        broker = self._world.broker
        taken = [(name, ticket) for name in self._world.names.values() if (ticket := broker.take(name))]
        if not self._claim([ticket for _, ticket in taken], dies=dies):
            for name, ticket in taken:
                broker.queues.setdefault(name, []).insert(0, ticket)

    def claim_head(self, *, jobs: int = 8, dies: bool = False) -> None:
        """The idle claim."""
        now = self._world.clock.ms()
        with suppress(Unavailable):
            heads = [
                (each, self.link.head(each, after={}, jobs=jobs, urgent_before_ms=now)) for each in self._world.names
            ]
            chosen = [(each, choose(lines, jobs=jobs, share=FairShare()).ids) for each, lines in heads]
            self._claim([(each, ids) for each, ids in chosen if ids], dies=dies)

    def _claim(self, tickets: Sequence[tuple[int, Sequence[int]]], *, dies: bool) -> bool:
        """False where it did not take place. `dies`: after the commit, before it hears of it."""
        if not tickets:
            return True
        lease_until = self._world.lease_of(self.owner)
        try:
            jobs: list[ClaimedJob] = self.link.claim(tickets, owner=self.owner)
        except Unavailable:
            return False
        now = self._world.clock.ms()
        assert not jobs or (lease_until is not None and lease_until > now), "claimed without a live lease"
        assert all(job.deadline_ms is None or job.deadline_ms > now for job in jobs), "claimed past its deadline"
        assert {job.queue_id for job in jobs} <= {queue_id for queue_id, _ in tickets}
        if dies:
            self._world.bury(self, executing=None)
        else:
            self.held += self._shared(jobs) if self._world.shares else jobs
        return True

    # --- results that serve others ---

    def _shared(self, jobs: list[ClaimedJob]) -> list[ClaimedJob]:
        """What is left to be computed; what others have computed is done."""
        if not jobs:
            return jobs
        keys = [b"%d %b" % (job.tenant_id, job.input) for job in jobs]
        owner, store, link = self.owner, self._world.store, self.link
        found: list[Division] = []
        self._world.late.append(self._fenced(jobs, lambda: self._share(store, jobs, keys, owner)))
        with suppress(Unavailable):
            self._fenced(jobs, lambda: found.append(self._share(link, jobs, keys, owner)))()
        if not found:
            return [msgspec.structs.replace(job, is_followed=True) for job in jobs]
        [division] = found
        self.done += [_served(job, division.served[job.id]) for job in jobs if job.id in division.served]
        gone = division.served.keys() | division.following
        left = [job for job in jobs if job.id not in gone]
        return [msgspec.structs.replace(job, is_followed=job.id in division.computing) for job in left]

    @staticmethod
    def _share(through: Any, jobs: Sequence[ClaimedJob], keys: Sequence[bytes], owner: int) -> Division:
        division: Division = through.share(jobs, keys, owner=owner, keep_ms=KEEP_MS)
        return division

    # --- the device ---

    def run(self, jobs: int, *, is_told: bool) -> None:
        """One batch. A poisonous input ends the process; `is_told`: somebody is left to say what it executed."""
        suspects = [job for job in self.held if job.suspect]
        batch = (suspects[:1] or self.held)[:jobs]
        if not batch:
            return
        if suspects:
            self._world.store.note_solo(self.owner, job_id=batch[0].id)
        if any(self._mood(job) == "poison" for job in batch):
            self._world.bury(self, executing=[job.id for job in batch] if is_told else None)
            return
        if suspects:
            self._world.store.note_solo(self.owner, job_id=None)
        self.held = [job for job in self.held if job not in batch]
        self.done += [self._outcome(job) for job in batch]

    @staticmethod
    def _mood(job: ClaimedJob) -> str:
        mood: str = msgspec.json.decode(job.input)["do"]
        return mood

    def _outcome(self, job: ClaimedJob) -> Outcome:
        mood = self._mood(job)
        if mood == "echo" or (mood == "mend" and job.failures):
            return Outcome(job, State.SUCCEEDED, body=answer(job.id, job.input), cost=2, device_us=5)
        return RETRIES.outcome(job, ErrorInfo("busy", "not now", retryable=mood in {"flaky", "mend"}))

    # --- writes ---

    def write(self) -> None:
        """Write what is done; kept where the database is away."""
        if self.done:
            with suppress(Unavailable):
                self._finish()
                self.done.clear()

    def _finish(self) -> None:
        self.write_late()
        owner, link, outcomes = self.owner, self.link, list(self.done)
        self._fenced([outcome.job for outcome in outcomes], lambda: self._write(link, outcomes, owner))()

    def write_late(self) -> None:
        """A write of what is done is on its way."""
        owner, store, outcomes = self.owner, self._world.store, list(self.done)
        write = self._fenced([outcome.job for outcome in outcomes], lambda: self._write(store, outcomes, owner))
        self._world.late.append(write)

    def _write(self, through: Any, outcomes: Sequence[Outcome], owner: int) -> None:
        self._world.check_written(set(through.finish(outcomes, owner=owner)), outcomes, owner=owner)

    def hand_back(self, *, preempted: bool, late: bool) -> None:
        """Release what is held. `late`: the consumer is through with it, and the write still on its way."""
        jobs, self.held = self.held, []
        owner, store = self.owner, self._world.store

        def release() -> None:
            assert set(store.release(jobs, owner=owner, preempted=preempted)) <= {job.id for job in jobs}

        write = self._fenced(jobs, release)
        self._world.late.append(write)
        if not late:
            write()

    def _fenced(self, jobs: Sequence[ClaimedJob], write: Write) -> Write:
        claims = {job.id: (self.owner, job.attempt) for job in jobs}

        def carried_out() -> None:
            with self._world.history.writing(claims):
                write()

        return carried_out
