"""Random lives of jobs: after every step the backlog equals the count, bulks add up, and no state is left twice."""

import random
from collections import Counter
from collections.abc import Callable

import pytest

from batchyard.jobs import TRANSITIONS, ClaimedJob, Outcome, State
from batchyard.store.base import BulkView
from tests.services.store.yard import TENANT, Yard, check_ledgers, failed, succeeded, waiting

STEPS = 60
ALLOWED = {(before, after) for before, after in TRANSITIONS if before is not None}


class Life:
    """Does random things to jobs and remembers every state it has seen."""

    def __init__(self, yard: Yard, seed: int) -> None:
        self.yard = yard
        self.store = yard.store
        self.random = random.Random(seed)
        self.tenants = [TENANT, yard.tenant()]
        self.owners = [yard.owner, yard.consumer()]
        self.held: list[tuple[int, ClaimedJob]] = []
        self.seen: dict[int, State] = {}
        self.tenant_of: dict[int, int] = {}
        self.deleted: set[int] = set()
        self.bulks: list[BulkView] = [yard.bulk(), yard.bulk()]
        self.steps: list[Callable[[], object]] = [
            self.submit,
            self.submit,
            self.submit_to_bulk,
            self.claim,
            self.claim,
            self.finish,
            self.finish,
            self.release,
            self.cancel,
            self.amend,
            self.forget,
            self.chores,
            self.pause_or_resume,
            self.cancel_bulk,
            self.leave,
            self.retire,
        ]

    def some(self, ids: list[int], most: int = 6) -> list[int]:
        return self.random.sample(ids, min(len(ids), self.random.randint(1, most)))

    def living(self) -> list[int]:
        return [job_id for job_id in self.seen if job_id not in self.deleted]

    def submit(self) -> None:
        now = self.store.now_ms()
        deadline = self.random.choice([None, None, now + 600_000, now - 1, now + 90_000])
        tenant = self.random.choice(self.tenants)
        values = {
            "priority": self.random.randint(0, 9),
            "deadline_ms": deadline,
            "start_by_ms": deadline,
            "tenant_id": tenant,
            "queue_id": self.random.choice([self.yard.queue, self.yard.tolerant]),
            "labels": self.random.choice([(), ("red",), ("red", "blue")]),
        }
        self.remember(self.yard.submit(self.random.randint(1, 5), **values), tenant)

    def submit_to_bulk(self) -> None:
        bulk = self.random.choice(self.bulks)
        if self.yard.bulk_view(bulk).sealed_at_ms is None:
            self.remember(self.yard.submit(self.random.randint(1, 9), bulk_id=bulk.id), TENANT)

    def remember(self, ids: list[int], tenant: int) -> None:
        self.seen.update(dict.fromkeys(ids, State.QUEUED))
        self.tenant_of.update(dict.fromkeys(ids, tenant))

    def claim(self) -> None:
        owner = self.random.choice(self.owners)
        for queue in (self.yard.queue, self.yard.tolerant):
            ids = self.some([*self.living(), 3], most=12)
            self.held += [(owner, job) for job in self.store.claim([(queue, ids)], owner=owner)]

    def finish(self) -> None:
        self.random.shuffle(self.held)
        taken, self.held = self.held[:5], self.held[5:] + self.held[:1]
        for owner in self.owners:
            outcomes = [self.outcome(job) for holder, job in taken if holder == owner]
            written = self.store.finish(outcomes, owner=owner)
            assert set(written) <= {outcome.job.id for outcome in outcomes}

    def outcome(self, job: ClaimedJob) -> Outcome:
        kind = self.random.random()
        if kind < 0.5:
            return succeeded(job, cost=self.random.randint(0, 50))
        if kind < 0.7:
            return failed(job)
        return waiting(job, retry_in_ms=self.random.choice([0, 600_000]))

    def release(self) -> None:
        for owner in self.owners:
            jobs = [job for holder, job in self.held if holder == owner][:3]
            self.store.release(jobs, owner=owner, preempted=self.random.random() < 0.5)

    def cancel(self) -> None:
        for job_id in self.some(self.living(), most=2) if self.seen else []:
            self.store.cancel(job_id, tenant_id=self.tenant_of[job_id])

    def amend(self) -> None:
        queued = [job_id for job_id in self.living() if self.seen[job_id] is State.QUEUED]
        for job_id in self.some(queued, most=3) if queued else []:
            deadline = self.random.choice([None, self.store.now_ms() + 300_000])
            self.store.amend(
                job_id,
                tenant_id=self.tenant_of[job_id],
                priority=self.random.choice([None, 0, 9]),
                deadline_ms=deadline,
                start_by_ms=deadline,
            )

    def forget(self) -> None:
        done = [job_id for job_id in self.living() if self.seen[job_id].is_terminal]
        for job_id in self.some(done, most=2) if done else []:
            self.store.forget(job_id, tenant_id=self.tenant_of[job_id])

    def chores(self) -> None:
        self.store.promote_due(limit=self.random.randint(1, 5))
        self.store.expire_due(limit=self.random.randint(1, 5))
        self.store.sweep_bulks(limit=self.random.randint(1, 10))
        self.store.reap(limit=5)
        lanes = {self.yard.tolerant: self.yard.queue}
        before_ms = self.store.now_ms() + self.random.choice([0, 120_000])
        self.store.move_to_firm(lanes, preemptions=1, start_before_ms=before_ms, limit=3)
        self.store.fold(limit=self.random.randint(1, 100))

    def pause_or_resume(self) -> None:
        bulk = self.random.choice(self.bulks)
        self.store.pause_bulk(bulk.id, tenant_id=TENANT, paused=self.random.random() < 0.5)

    def cancel_bulk(self) -> None:
        if self.random.random() < 0.2:
            place = self.random.randrange(len(self.bulks))
            self.store.cancel_bulk(self.bulks[place].id, tenant_id=TENANT)
            self.bulks.append(self.yard.bulk())

    def leave(self) -> None:
        if self.random.random() < 0.3:
            self.store.deregister(self.owners.pop())
            self.owners.append(self.yard.consumer())

    def retire(self) -> None:
        if self.random.random() < 0.3:
            self.store.retire(finished_before_ms=self.store.now_ms() - 20, limit=4, tombstone_ms=1 << 40)

    def check(self) -> None:
        """What must hold after every step."""
        check_ledgers(self.store)
        views = {
            view.id: view for tenant in self.tenants for view in self.store.get_jobs(list(self.seen), tenant_id=tenant)
        }
        for job_id, before in list(self.seen.items()):
            view = views.get(job_id)
            if view is None:
                assert before.is_terminal, f"{job_id} vanished while {before.word}"
                self.deleted.add(job_id)
                continue
            assert job_id not in self.deleted
            assert view.state is before or self.reachable(before, view.state), (before, view.state)
            assert (view.result_body is not None) == (view.state is State.SUCCEEDED)
            self.seen[job_id] = view.state
        assert sum(row.jobs for row in self.store.backlog()) == len(views)
        ended = [state for state in self.seen.values() if state in {State.SUCCEEDED, State.FAILED}]
        assert sum(self.store.finished_jobs().values()) == len(ended), "deleted ones included"
        for bulk in self.store.list_bulks(tenant_id=TENANT):
            assert sum(bulk.counts.values()) == bulk.jobs
            assert all(count >= 0 for count in bulk.counts.values())
            kept = Counter(view.state for view in views.values() if view.bulk_id == bulk.id)
            for state in (State.QUEUED, State.RUNNING, State.WAITING):
                assert bulk.counts.get(state, 0) == kept[state]

    def reachable(self, before: State, after: State) -> bool:
        """A step may move a job several times, never out of a terminal state."""
        found = {before}
        for _ in State:
            found |= {to for start, to in ALLOWED if start in found}
        return after in found and not before.is_terminal


@pytest.mark.parametrize("seed", range(3))
def test_ledgers_hold_through_random_lives(yard: Yard, seed: int) -> None:
    life = Life(yard, seed)
    for _ in range(STEPS):
        step = life.random.choice(life.steps)
        step()
        life.check()
    finished_flushes(life)


def finished_flushes(life: Life) -> None:
    """Every terminal job of a bulk that is still there stands once in its results."""
    life.yard.number_flushes()
    for bulk in life.store.list_bulks(tenant_id=TENANT):
        rows = life.store.bulk_results(bulk.id, after_seq=0, limit=100_000)
        assert len({row.id for row in rows}) == len(rows)
        ids = list(life.seen)
        views = life.store.get_jobs(ids, tenant_id=TENANT)
        terminal = {view.id for view in views if view.bulk_id == bulk.id and view.state.is_terminal}
        assert {row.id for row in rows} == terminal
