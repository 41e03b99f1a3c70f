"""Microseconds a job of the store's hot calls, and what depth does to every call that must not feel it.

    python -m tests.benchmarks.store sqlite:////tmp/shallow.db sqlite:////tmp/deep.db
    python -m tests.benchmarks.store postgresql+psycopg://…/shallow postgresql+psycopg://…/deep --deep 10000000

The databases must be empty; they are migrated, and never analysed. They are called in turn, so that whatever else the
machine does weighs on both. Times are wall clock on one thread; beside each stands the CPU time of this process, which
for SQLite is all there is.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from batchyard.jobs import Accepted, ClaimedJob, Lane, Outcome, State, Submission
from batchyard.store import migrate
from batchyard.store.base import BulkConfig, JobFilter, JobStore, ModelConfig
from batchyard.store.open import open_store

CHUNK = 10_000
TICKET = 128
CLAIM = 8 * TICKET
PRIORITIES = (2, 5, 8)
TENANTS = 10
LEASE_MS = 3_600_000
INPUT = b'{"text": "%084d"}'
ResultT = TypeVar("ResultT")
RESULT = b'{"echo": "%084d"}'


@dataclass(frozen=True, kw_only=True)
class Fixture:
    store: JobStore
    queue: int
    owner: int
    tenants: Sequence[int]

    def submission(self, count: int, *, tenant: int = 1, priority: int = 5, bulk: int | None = None) -> Submission:
        return Submission(
            tenant_id=tenant,
            queue_id=self.queue,
            priority=priority,
            inputs=[INPUT % n for n in range(count)],
            costs=[100 + n % 50 for n in range(count)],
            bulk_id=bulk,
        )

    def submit(self, count: int, *, tenant: int = 1, priority: int = 5, bulk: int | None = None) -> list[int]:
        (answer,) = self.store.submit([self.submission(count, tenant=tenant, priority=priority, bulk=bulk)])
        assert isinstance(answer, Accepted)
        return list(answer.ids)

    def claim(self, ids: Sequence[int]) -> list[ClaimedJob]:
        tickets = [(self.queue, ids[start : start + TICKET]) for start in range(0, len(ids), TICKET)]
        return self.store.claim(tickets, owner=self.owner)

    def finish(self, jobs: Sequence[ClaimedJob]) -> None:
        outcomes = [
            Outcome(job, State.SUCCEEDED, body=RESULT % place, cost=100, device_us=5) for place, job in enumerate(jobs)
        ]
        assert len(self.store.finish(outcomes, owner=self.owner)) == len(jobs)


class Meter:
    """Wall and CPU microseconds of a call, over several."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def run(self, call: Callable[[], ResultT], *, per: int = 1) -> ResultT:
        cpu, wall = time.process_time(), time.perf_counter()
        result = call()
        self.wall.append((time.perf_counter() - wall) * 1e6 / per)
        self.cpu.append((time.process_time() - cpu) * 1e6 / per)
        return result

    def __str__(self) -> str:
        return f"{statistics.median(self.wall):10.2f} {statistics.median(self.cpu):10.2f}"


def low(figures: list[float]) -> float:
    """The lower quartile: what else runs on the machine shows less."""
    return statistics.quantiles(figures, n=4)[0]


def prepare(url: str) -> Fixture:
    migrate.upgrade(url)
    store = open_store(url, state_dir=Path())
    if store.backlog():
        sys.exit(f"{url} holds jobs: this benchmark wants an empty database")
    (model,) = store.sync_models([ModelConfig(model="bench", version="1", runtime="none")])
    owner = store.register_consumer(
        pool="bench", host="", pid=0, device="cpu", capacity="on_demand", queue_ids=[], lease_ms=LEASE_MS
    )
    tenants = [1, *(store.create_tenant(f"tenant-{n}").id for n in range(1, TENANTS))]
    return Fixture(store=store, queue=model.queue_ids[Lane.FIRM], owner=owner, tenants=tenants)


def hot_path(fixture: Fixture, *, chunks: int) -> None:
    """Insert, claim, finish and read back the jobs of a bulk."""
    bulk = fixture.store.create_bulk(BulkConfig(tenant_id=1, queue_id=fixture.queue, defaults=b"{}"))
    insert, claim, finish, read = Meter(), Meter(), Meter(), Meter()
    ids: list[int] = []
    for _ in range(chunks):
        submission = fixture.submission(CHUNK, bulk=bulk.id)
        (answer,) = insert.run(partial(fixture.store.submit, [submission]), per=CHUNK)
        assert isinstance(answer, Accepted)
        ids += answer.ids
    for start in range(0, len(ids), CLAIM):
        piece = ids[start : start + CLAIM]
        jobs = claim.run(partial(fixture.claim, piece), per=len(piece))
        assert len(jobs) == len(piece)
        outcomes = [Outcome(job, State.SUCCEEDED, body=RESULT % n, cost=100, device_us=5) for n, job in enumerate(jobs)]
        finish.run(partial(fixture.store.finish, outcomes, owner=fixture.owner), per=len(piece))
    while fixture.store.fold(limit=100_000):
        pass
    after = 0
    while after < fixture.store.bulk_results(bulk.id, after_seq=0, limit=1 << 40)[-1].seq:
        page = partial(fixture.store.bulk_results, bulk.id, after_seq=after, limit=2 * CLAIM)
        after = read.run(page, per=2 * CLAIM)[-1].seq
    print(f"\n{'microseconds a job':32} {'wall':>10} {'CPU':>10}")
    for name, meter in (("insert", insert), ("claim", claim), ("finish", finish), ("read results", read)):
        print(f"{name:32} {meter}")


def fill(fixture: Fixture, *, until: int, have: int) -> int:
    """Queue jobs of all tenants and priorities in turn, up to `until`."""
    lines = itertools.cycle(itertools.product(fixture.tenants, PRIORITIES))
    size = min(CHUNK, until // (TENANTS * len(PRIORITIES)))
    while have < until:
        tenant, priority = next(lines)
        fixture.submit(size, tenant=tenant, priority=priority)
        have += size
    return have


def calls(fixture: Fixture, meters: dict[str, Meter]) -> None:
    """One round, which takes and puts back as many jobs, so that the depth stays."""
    store = fixture.store

    def measure(name: str, call: Callable[..., ResultT], *given: object, **named: object) -> ResultT:
        return meters.setdefault(name, Meter()).run(partial(call, *given, **named))

    made = measure("submit 128", fixture.submit, TICKET)
    measure("submit one", fixture.submit, 1, tenant=3, priority=8)
    measure("poll one", store.get_jobs, made[:1], tenant_id=1)
    measure("poll 100", store.get_jobs, made[:100], tenant_id=1)
    measure("finished among 1,000", store.finished_among, made * 8)
    measure("head, 512 jobs", store.head, fixture.queue, after={}, jobs=512, urgent_before_ms=0)
    measure("list newest 100", store.list_jobs, JobFilter(tenant_id=1))
    measure("list queued 100", store.list_jobs, JobFilter(tenant_id=1, state=State.QUEUED))
    measure("position", store.position, made[0], limit=100)
    measure("backlog", store.backlog)
    measure("oldest queued", store.oldest_queued_ms)
    jobs = measure("claim 128", fixture.claim, made)
    measure("list running 100", store.list_jobs, JobFilter(tenant_id=1, state=State.RUNNING))
    measure("finish 128", fixture.finish, jobs)
    measure("renew a lease", store.renew, fixture.owner, lease_ms=LEASE_MS, state="ready", stats={})
    measure("reap, promote, expire", _chores, store)
    store.fold(limit=100_000)


def _chores(store: JobStore) -> None:
    store.reap(limit=1_000)
    store.promote_due(limit=1_000)
    store.expire_due(limit=1_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shallow_url", help="also of the hot path, which comes last: it leaves much behind")
    parser.add_argument("deep_url")
    parser.add_argument("--chunks", type=int, default=10, help="of 10,000 jobs, for the hot path")
    parser.add_argument("--shallow", type=int, default=1_000)
    parser.add_argument("--deep", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=60)
    chosen = parser.parse_args()
    shallow, deep = prepare(chosen.shallow_url), prepare(chosen.deep_url)
    print(f"durability: {shallow.store.durability()}")
    fill(shallow, until=chosen.shallow, have=0)
    fill(deep, until=chosen.shallow, have=0)
    for _ in range(5):  # plans are made while there is little, and kept
        calls(shallow, {})
        calls(deep, {})
    fill(deep, until=chosen.deep, have=chosen.shallow)
    # What the filling wrote has to reach the disk first, or every commit waits for it.
    os.sync()
    few_meters: dict[str, Meter] = {}
    many_meters: dict[str, Meter] = {}
    for _ in range(chosen.rounds):
        calls(shallow, few_meters)
        calls(deep, many_meters)
    depths = f"{chosen.shallow:,} queued", f"{chosen.deep:,} queued"
    print(f"\n{'microseconds a call':28} {depths[0]:>18} {depths[1]:>18} {'wall':>7} {'CPU':>7}   (lower quartiles)")
    for name, few in few_meters.items():
        many = many_meters[name]
        walls = low(few.wall), low(many.wall)
        cpu = low(many.cpu) / low(few.cpu)
        print(f"{name:28} {walls[0]:18.0f} {walls[1]:18.0f} {walls[1] / walls[0]:6.2f}x {cpu:6.2f}x")
    hot_path(shallow, chunks=chosen.chunks)
    shallow.store.close()
    deep.store.close()


if __name__ == "__main__":
    main()
