"""The simulated system: the real store, dispatchers and retry policy, between parts that fail when told to."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence, Set
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from batchyard.errors import BrokerDown, Unavailable
from batchyard.jobs import Accepted, Lane, Outcome, State, Submission, redrive_key
from batchyard.settings import QueueSettings, Settings
from batchyard.store.base import ModelConfig
from batchyard.store.sqlite import SqliteStore
from batchyard.testing import memory_store
from batchyard.ticketing import queue_names
from batchyard_producer.dispatcher import Dispatcher, Timing
from tests.faults.simulation.consumer import LEASE_SECONDS, SimulatedConsumer, Write, answer
from tests.faults.simulation.history import History
from tests.faults.simulation.parts import Clock, Fault, Link, SimulatedBroker
from tests.services.store.yard import check_ledgers

TIMING = Timing(retry=0.6, reap=1.0, retire=3600.0)
SETTINGS = Settings(
    state_dir=Path("nowhere"), queues=QueueSettings(lease_seconds=LEASE_SECONDS, window_seconds=0.5, max_failures=3)
)
LATE_WRITES = 12
HEALED_SECONDS = 120.0
"""What remains ends within this after the last fault: leases, back-offs and re-ticketing, several times over."""

MISMATCHED = """
SELECT count(*) FROM jobs j LEFT JOIN job_results r ON r.job_id = j.id
WHERE j.state = 3 AND (r.attempt IS NOT j.attempt OR r.completed_by IS NOT j.owner)
"""
UNOWNED = "SELECT count(*) FROM jobs WHERE state = 1 AND owner NOT IN (SELECT id FROM consumers)"
KEPT_BYTES = """
SELECT (SELECT coalesce(sum(length(body)), 0) FROM job_inputs) + (
    SELECT coalesce(sum(length(body)), 0) FROM job_results JOIN jobs ON id = job_id WHERE state IN (3, 4))
"""


@cache
def _template() -> Any:
    return memory_store()


def fresh_store(clock: Clock) -> SqliteStore:
    """An empty store in memory: a copy, because a migration takes a hundred times as long."""
    store = SqliteStore(None, clock=clock.ms)
    with _template()._file.reading(snapshot=False) as source, store._file.reading(snapshot=False) as copy:
        source.raw.backup(copy.raw)
    return store


class World:
    """One system with two dispatchers and some consumers. Everything happens on one thread, when it is told to."""

    def __init__(self, *, claims_idly: bool, shares: bool) -> None:
        self.claims_idly = claims_idly
        """Consumers look into the database too; otherwise tickets alone bring them jobs."""
        self.shares = shares
        """Results serve other jobs of the tenant that have the same input."""
        self.clock = Clock()
        self.store = fresh_store(self.clock)
        (version,) = self.store.sync_models([ModelConfig(model="m", version="1", runtime="tests:Echo")])
        self.names = queue_names([version])
        self.queue_ids = [version.queue_ids[lane] for lane in Lane]
        self.tenants = [1, self.store.create_tenant("other").id]
        with self.store._file.reading(snapshot=False) as handle:
            self.raw: Any = handle.raw
        self.history = History(self.raw)
        self.broker = SimulatedBroker()
        self.api = Link(self.store)
        self.dispatcher_links = [Link(self.store), Link(self.store)]
        self.dispatchers = [self._dispatcher(link) for link in self.dispatcher_links]
        self.consumers: list[SimulatedConsumer] = []
        self.late: deque[Write] = deque(maxlen=LATE_WRITES)
        """Writes of consumers, whether they have arrived or not: each may arrive, again and again, at any moment."""
        self.accepted: dict[int, tuple[int, bytes]] = {}
        """Job → tenant and input, of every submission that was answered."""
        self.unanswered: dict[str, Submission] = {}
        """By key: committed or not, nobody knows."""
        self.ids_of: dict[str, list[int]] = {}
        self.deleted: set[int] = set()
        self._checked_changes = -1

    def close(self) -> None:
        self.store.close()

    # --- submitting ---

    def submit(self, submissions: Sequence[Submission], *, publishes: bool = True) -> None:
        """One group commit. `publishes`: the tickets that the allowance permits are published right after it."""
        try:
            answers = self.api.submit(submissions)
        except Unavailable:
            self.unanswered.update({made.idempotency_key or "": made for made in submissions})
            return
        for made, accepted in zip(submissions, answers, strict=True):
            if isinstance(accepted, Accepted):
                self._accept(made, accepted, publishes=publishes)
            else:
                assert made.bulk_id is not None, accepted

    def _accept(self, made: Submission, accepted: Accepted, *, publishes: bool) -> None:
        key, ids = made.idempotency_key or "", list(accepted.ids)
        self.unanswered.pop(key, None)
        before = self.ids_of.setdefault(key, ids)
        if before != ids:
            assert self.deleted.issuperset(before), f"the key {key} made jobs twice"
            self.ids_of[key] = ids
        assert accepted.replayed or not self.accepted.keys() & set(ids), "an id was given twice"
        self.accepted.update({job_id: (made.tenant_id, body) for job_id, body in zip(ids, made.inputs, strict=True)})
        if accepted.replayed or not publishes:
            return
        if made.ticketed:
            with suppress(BrokerDown):
                self.broker.publish(self.names[made.queue_id], made.queue_id, ids)
        else:
            for dispatcher in self.dispatchers:
                dispatcher.notify([made.queue_id])

    def may_ticket(self, queue_id: int, jobs: int) -> bool:
        """Whether the leader lets submitters ticket so many jobs by themselves."""
        return any(each.is_leader and each.allowance.take(queue_id, jobs) for each in self.dispatchers)

    def redrive(self, job_id: int, *, tenant_id: int, fault: Fault | None) -> None:
        """A dead job becomes a new one, and the same one however often that is asked for."""
        for view in self.store.get_jobs([job_id], tenant_id=tenant_id):
            if view.state.is_dead and redrive_key(job_id) not in self.unanswered:
                made = Submission(
                    tenant_id=tenant_id,
                    queue_id=view.queue_id,
                    inputs=[self.accepted[job_id][1]],
                    costs=[1],
                    redrive_of=job_id,
                    idempotency_key=redrive_key(job_id),
                    idempotency_digest=b"digest",
                )
                self.api.fault = fault
                self.submit([made])

    def cancel_bulk(self, bulk_id: int) -> None:
        """A chunk that was never answered is refused from now on, unless it was committed."""
        self.store.cancel_bulk(bulk_id, tenant_id=1)
        for key, made in list(self.unanswered.items()):
            if made.bulk_id == bulk_id:
                self.submit([made])
                self.unanswered.pop(key, None)

    # --- living and dying ---

    def _dispatcher(self, link: Any) -> Dispatcher:
        broker: Any = self.broker
        return Dispatcher(link, broker, SETTINGS, timing=TIMING, clock=self.clock)

    def replace_dispatcher(self, place: int) -> None:
        """Its process is killed, without a word, and another started."""
        self.dispatchers[place] = self._dispatcher(self.dispatcher_links[place])

    def live(self, seconds: float) -> None:
        """Time passes as usual, with rounds, heartbeats and work. Whatever was away then returns."""
        for _ in range(round(seconds)):
            self.clock.now += 1.0
            for dispatcher in self.dispatchers:
                dispatcher.round()
            for consumer in list(self.consumers):
                if not consumer.is_paused:
                    consumer.beat()
                    consumer.go_on(idly=self.claims_idly)
        self._recover()

    def _recover(self) -> None:
        self.broker.is_down, self.broker.fault = False, None
        for link in (self.api, *self.dispatcher_links, *(consumer.link for consumer in self.consumers)):
            link.is_away, link.fault = False, None
        for consumer in self.consumers:
            consumer.is_paused, consumer.stuck_before = False, None

    def bury(self, consumer: SimulatedConsumer, *, executing: Sequence[int] | None) -> None:
        """Its process is gone. `executing`: what it executed, where somebody is left to tell."""
        self.consumers.remove(consumer)
        if executing is not None:
            self.store.bury(consumer.owner, executing=executing, cause="was ended by SIGABRT")

    def lease_of(self, owner: int) -> int | None:
        permit = "SELECT lease_until FROM consumers WHERE id = ? AND state NOT IN ('dead', 'gone')"
        row = self.raw.execute(permit, (owner,)).fetchone()
        return None if row is None else int(row[0])

    # --- healing ---

    def heal(self) -> None:
        """Every fault ends: what is on its way arrives, and who was not answered asks again."""
        self._recover()
        self.broker.arrive()
        for write in self.late:
            write()
        for made in list(self.unanswered.values()):
            self.submit([made])
        for bulk in self.store.list_bulks(tenant_id=1):
            self.store.pause_bulk(bulk.id, tenant_id=1, paused=False)

    def drain(self) -> None:
        """Work until every job has ended."""
        end = self.clock.now + HEALED_SECONDS
        while self.open_jobs():
            assert self.clock.now < end, f"not ended within {HEALED_SECONDS:g} s:\n{self._stuck()}"
            while len(self.consumers) < 2:
                self.consumers.append(SimulatedConsumer(self))
            self.live(1.0)

    def open_jobs(self) -> int:
        return int(self.raw.execute("SELECT count(*) FROM jobs WHERE state < 3").fetchone()[0])

    def _stuck(self) -> str:
        (job_id,) = self.raw.execute("SELECT min(id) FROM jobs WHERE state < 3").fetchone()
        return f"job {job_id}\n{self.history.of(job_id)}"

    # --- what must hold ---

    def check(self) -> None:
        """After every step that changed anything."""
        if self.raw.total_changes == self._checked_changes:
            return
        self.history.check()
        for dispatcher in self.dispatchers:
            assert dispatcher._outages.keys() <= {"broker", "database"}, "a dispatcher met an unexpected error"
        check_ledgers(self.store)
        assert self.raw.execute(MISMATCHED).fetchone() == (0,), "a result is not that of the latest claim"
        assert self.raw.execute(UNOWNED).fetchone() == (0,), "a job runs that nobody holds"
        usage = self.store.usage()
        assert sum(row.jobs for row in usage) == len(self.history.succeeded), "one usage row per success"
        served = self.history.served()
        assert served <= self.history.succeeded.keys()
        # What was cancelled while it ran may have had the device, or not yet.
        computed = len(self.history.succeeded) - len(served)
        assert 5 * computed <= sum(row.device_us for row in usage) <= 5 * (computed + self.history.cancelled)
        assert self.store.stored_bytes() == self.raw.execute(KEPT_BYTES).fetchone()[0]
        self._checked_changes = self.raw.total_changes

    def check_written(self, written: Set[int], outcomes: Sequence[Outcome], *, owner: int) -> None:
        """What a consumer was told to be written stands there by one of its claims."""
        stands = "SELECT state, attempt, owner FROM jobs WHERE id = ?"
        for job_id in written:
            row = self.raw.execute(stands, (job_id,)).fetchone()
            mine = [(outcome.state, outcome.job.attempt) for outcome in outcomes if outcome.job.id == job_id]
            possible = {(int(to), attempt, owner) for state, attempt in mine for to in (state, State.CANCELLED)}
            assert row in possible, f"told to be written, and is not: {row}"

    def check_end(self) -> None:
        """Once everything has healed and drained: every job that was answered has ended, and no other exists."""
        self.check()
        known = {job_id for (job_id,) in self.raw.execute("SELECT id FROM jobs").fetchall()}
        assert known | self.deleted == set(self.accepted), "jobs that nobody asked for, or lost ones"
        assert not known & self.deleted
        for tenant_id in self.tenants:
            for view in self.store.get_jobs(list(self.accepted), tenant_id=tenant_id):
                owner, body = self.accepted[view.id]
                assert owner == tenant_id, "seen by another tenant"
                assert view.state.is_terminal
                assert view.attempt == self.history.claims.get(view.id, 0), "attempts are claims"
                if view.state is State.SUCCEEDED:
                    by = view.id if view.computed_by is None else view.computed_by
                    assert view.result_body == answer(by, body), "not the result of its own input"
                    assert self.accepted[by] == (tenant_id, body), "served with what somebody else computed"
        for bulk in self.store.list_bulks(tenant_id=1):
            rows = self.store.bulk_results(bulk.id, after_seq=0, limit=100_000)
            assert len({row.id for row in rows}) == len(rows), "twice in the results of its bulk"
            assert sum(bulk.counts.values()) == bulk.jobs
