"""Many connections at once on Postgres: what SQLite's one writer settles by itself."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import psycopg
import pytest
from psycopg.errors import DeadlockDetected

from batchyard.errors import InvalidInput
from batchyard.jobs import Accepted, State
from batchyard.store.base import JobStore
from batchyard.store.postgres import PostgresStore
from tests.services.store.yard import TENANT, Yard, check_ledgers, eventually, naming, succeeded, sweep, upload

pytestmark = pytest.mark.parametrize("database", ["postgres"], indirect=True)
Open = Callable[[], JobStore]
T = TypeVar("T")
WRITERS = 4


def at_once(calls: Iterable[Callable[[], T]]) -> list[T]:
    """Run all calls in threads that start together; results in order, the first error raised."""
    waiting = list(calls)
    start = threading.Barrier(len(waiting))

    def run(call: Callable[[], T]) -> T:
        start.wait()
        return call()

    with ThreadPoolExecutor(len(waiting)) as threads:
        return list(threads.map(run, waiting))


@pytest.fixture
def session(database: str) -> Any:
    """A connection beside the store's own."""
    with psycopg.connect(database.replace("+psycopg", ""), autocommit=True) as connection:
        yield connection


@pytest.fixture
def deadlocks(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """Those that hot statements met, which their callers never see."""
    met: list[Exception] = []
    execute = PostgresStore._execute

    def watched(self: PostgresStore, *arguments: Any) -> Any:
        try:
            return execute(self, *arguments)
        except DeadlockDetected as deadlock:
            met.append(deadlock)
            raise

    monkeypatch.setattr(PostgresStore, "_execute", watched)
    return met


def test_claimers_of_the_same_tickets_share_them_out(yard: Yard, open_another: Open) -> None:
    ids = yard.submit(4000)
    tickets = [(yard.queue, ids[start : start + 128]) for start in range(0, len(ids), 128)]
    owners = [yard.consumer() for _ in range(WRITERS)]

    def claim_all(store: JobStore, owner: int, order: list[tuple[int, list[int]]]) -> list[int]:
        return [job.id for ticket in order for job in store.claim([ticket], owner=owner)]

    calls = [
        partial(claim_all, open_another(), owner, random.Random(place).sample(tickets, len(tickets)))
        for place, owner in enumerate(owners)
    ]
    taken = at_once(calls)
    assert Counter(job_id for one in taken for job_id in one) == Counter(ids)


def test_overlapping_finishes_neither_deadlock_nor_write_twice(
    yard: Yard, open_another: Open, deadlocks: list[Exception]
) -> None:
    bulk = yard.bulk()
    ids = yard.submit(2000, bulk_id=bulk.id)
    outcomes = [succeeded(job) for job in yard.claim(ids)]

    def finish(store: JobStore, seed: int) -> None:
        order = random.Random(seed)
        for _ in range(6):
            mine = order.sample(outcomes, 700)
            assert store.finish(mine, owner=yard.owner) == [outcome.job.id for outcome in mine]

    at_once([partial(finish, open_another(), seed) for seed in range(WRITERS)])
    yard.finish(outcomes)
    assert deadlocks == []
    assert sum(row.jobs for row in yard.store.usage()) == len(ids)
    yard.number_flushes()
    named = Counter(row.id for row in yard.store.bulk_results(bulk.id, after_seq=0, limit=10_000))
    assert named == Counter(ids)


def test_writers_with_the_same_keys_make_one_set_of_jobs(
    yard: Yard, open_another: Open, deadlocks: list[Exception]
) -> None:
    group = [yard.submission(3, idempotency_key=f"key-{n}", idempotency_digest=b"same") for n in range(20)]

    def submit(store: JobStore, seed: int) -> dict[str | None, Accepted]:
        mine = random.Random(seed).sample(group, len(group))
        answered = zip(mine, store.submit(mine), strict=True)
        return {one.idempotency_key: answer for one, answer in answered if isinstance(answer, Accepted)}

    made = at_once([partial(submit, open_another(), seed) for seed in range(WRITERS)])
    for one in group:
        answers = [each[one.idempotency_key] for each in made]
        assert len({tuple(answer.ids) for answer in answers}) == 1
        assert [answer.replayed for answer in answers].count(False) == 1
    assert sum(row.jobs for row in yard.store.recount()) == 3 * len(group)
    assert deadlocks == []


def test_chunks_sent_at_once_get_places_of_their_own(yard: Yard, open_another: Open) -> None:
    bulk = yard.bulk()

    def feed(store: JobStore) -> list[int]:
        answers = [store.submit([yard.submission(5, bulk_id=bulk.id)])[0] for _ in range(5)]
        return [job_id for answer in answers if isinstance(answer, Accepted) for job_id in answer.ids]

    made = at_once([partial(feed, open_another()) for _ in range(WRITERS)])
    views = yard.store.get_jobs([job_id for ids in made for job_id in ids], tenant_id=TENANT)
    assert sorted(view.bulk_index or 0 for view in views) == list(range(100))
    assert yard.bulk_view(bulk).jobs == 100


def test_a_seal_waits_for_the_chunk_that_is_under_way(yard: Yard, open_another: Open) -> None:
    bulk = yard.bulk()
    other = open_another()

    def feed() -> int:
        return sum(isinstance(other.submit([yard.submission(2, bulk_id=bulk.id)])[0], Accepted) for _ in range(50))

    accepted, sealed = at_once([feed, lambda: yard.store.seal_bulk(tenant_id=TENANT, bulk_id=bulk.id).jobs])
    assert yard.bulk_view(bulk).jobs == 2 * accepted
    assert sealed == 2 * accepted


def test_ledgers_and_cursors_hold_under_load(yard: Yard, open_another: Open) -> None:
    """Submitters, claimers that finish, cancellers and a folder at once; a reader follows the bulk meanwhile."""
    bulk = yard.bulk()
    ids: list[int] = []
    done = threading.Event()
    read: list[int] = []

    def work(store: JobStore, owner: int, mine: list[int]) -> None:
        for start in range(0, len(mine), 60):
            jobs = store.claim([(yard.queue, mine[start : start + 60])], owner=owner)
            store.finish([succeeded(job) for job in jobs[:50]], owner=owner)
            store.release(jobs[50:], owner=owner)

    def cancel(store: JobStore, mine: list[int]) -> None:
        for job_id in mine:
            store.cancel(job_id, tenant_id=TENANT)

    def fold(store: JobStore) -> None:
        while not done.is_set():
            store.fold(limit=50)
            store.sweep_bulks(limit=100)

    def follow(store: JobStore) -> None:
        seq = 0
        while not done.is_set() or store.fold(limit=1000) or store.bulk_results(bulk.id, after_seq=seq, limit=1):
            rows = store.bulk_results(bulk.id, after_seq=seq, limit=100)
            read.extend(row.id for row in rows)
            seq = rows[-1].seq if rows else seq

    for _ in range(4):
        ids += yard.submit(600, bulk_id=bulk.id)
    workers = [(open_another(), yard.consumer(), ids[place::3]) for place in range(3)]
    with ThreadPoolExecutor(2) as beside:
        chores = [beside.submit(fold, open_another()), beside.submit(follow, open_another())]
        try:
            at_once([*(partial(work, *worker) for worker in workers), partial(cancel, yard.store, ids[::17])])
        finally:
            done.set()
        for chore in chores:
            chore.result()
    terminal = [view.id for view in yard.store.get_jobs(ids, tenant_id=TENANT) if view.state.is_terminal]
    assert Counter(read) == Counter(terminal)
    check_ledgers(yard.store)
    counts = yard.bulk_view(bulk).counts
    assert sum(counts.values()) == len(ids)
    assert counts[State.SUCCEEDED] + counts.get(State.CANCELLED, 0) == len(terminal)


def test_a_pause_returns_when_no_claim_is_under_way(
    yard: Yard, open_another: Open, session: Any, database: str
) -> None:
    """A claim that began before the pause may take jobs, but it has committed by the time the pause returns."""
    bulk = yard.bulk()
    ids = yard.submit(2, bulk_id=bulk.id)
    other = open_another()

    def pause() -> list[State]:
        yard.store.pause_bulk(bulk.id, tenant_id=TENANT, paused=True)
        return yard.states(ids)

    with psycopg.connect(database.replace("+psycopg", "")) as blocker, ThreadPoolExecutor(2) as threads:
        blocker.execute("SELECT 1 FROM consumers FOR UPDATE")
        claiming = threads.submit(other.claim, [(yard.queue, ids)], owner=yard.owner)
        eventually(lambda: _waiting(session) == 1)
        pausing = threads.submit(pause)
        eventually(lambda: _waiting(session) == 2)
        blocker.rollback()
        assert len(claiming.result()) == 2
        assert pausing.result() == [State.RUNNING] * 2
    assert yard.claim(yard.submit(1, bulk_id=bulk.id)) == []


def _waiting(session: Any) -> int:
    (count,) = session.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    ).fetchone()
    return int(count)


def test_a_payload_that_is_being_referred_to_is_not_given_up(yard: Yard, session: Any, database: str) -> None:
    number = upload(yard.store)
    with psycopg.connect(database.replace("+psycopg", "")) as submitter:
        submitter.execute("SELECT 1 FROM payloads FOR NO KEY UPDATE")
        assert sweep(yard.store) == []
        submitter.rollback()
    assert [leftover.id for leftover in sweep(yard.store)] == [number]


@pytest.mark.parametrize("is_given_up", [True, False])
def test_a_submission_waits_for_who_may_give_its_payload_up(
    yard: Yard, open_another: Open, session: Any, database: str, is_given_up: bool
) -> None:
    number = upload(yard.store)
    call = yard.submission(1, payloads=naming([number]))
    with psycopg.connect(database.replace("+psycopg", "")) as sweeper, ThreadPoolExecutor(1) as threads:
        sweeper.execute("SELECT 1 FROM payloads FOR UPDATE")
        submitting = threads.submit(open_another().submit, [call])
        eventually(lambda: _waiting(session) == 1)
        if is_given_up:
            sweeper.execute("DELETE FROM payloads")
        sweeper.commit()
        (answer,) = submitting.result()
    assert isinstance(answer, InvalidInput if is_given_up else Accepted)
    assert sum(row.jobs for row in yard.store.recount()) == int(not is_given_up)
    assert sweep(yard.store) == []


def test_a_job_that_is_forgotten_while_another_comes_leaves_it_the_payload(
    yard: Yard, open_another: Open, session: Any, database: str
) -> None:
    """The submission's statement began before the last job was gone, and goes on after: its counts are right."""
    number = upload(yard.store, size=1000)
    (old,) = yard.submit(1, payloads=naming([number]))
    yard.store.cancel(old, tenant_id=TENANT)
    with psycopg.connect(database.replace("+psycopg", "")) as blocker, ThreadPoolExecutor(2) as threads:
        blocker.execute("SELECT 1 FROM payloads FOR UPDATE")
        retiring = threads.submit(
            open_another().retire, finished_before_ms=yard.store.now_ms() + 60_000, limit=9, tombstone_ms=1 << 40
        )
        eventually(lambda: _waiting(session) == 1)
        submitting = threads.submit(open_another().submit, [yard.submission(1, payloads=naming([number]))])
        eventually(lambda: _waiting(session) == 2)
        blocker.rollback()
        assert retiring.result() == 1
        (answer,) = submitting.result()
    assert isinstance(answer, Accepted)
    assert session.execute("SELECT jobs FROM payloads").fetchall() == [(1,)]
    assert yard.store.stored_bytes() == len(b'{"n": 0}') + 1000
    assert sweep(yard.store) == []


def test_submissions_that_share_payloads_and_bulks_neither_deadlock_nor_miscount(
    yard: Yard, open_another: Open, session: Any, deadlocks: list[Exception]
) -> None:
    numbers = [upload(yard.store, size=10) for _ in range(6)]
    bulks = [yard.bulk() for _ in range(3)]

    def submit(store: JobStore, seed: int) -> None:
        order = random.Random(seed)
        for _ in range(10):
            group = [
                yard.submission(
                    2, bulk_id=order.choice([None, *(bulk.id for bulk in bulks)]), payloads=naming([], [number])
                )
                for number in order.sample(numbers, len(numbers))
            ]
            assert all(isinstance(answer, Accepted) for answer in store.submit(group))

    at_once([partial(submit, open_another(), seed) for seed in range(WRITERS)])
    assert deadlocks == []
    assert session.execute("SELECT id, jobs FROM payloads ORDER BY id").fetchall() == [
        (number, 10 * WRITERS) for number in numbers
    ]
    inline = 10 * WRITERS * len(numbers) * 2 * len(b'{"n": 0}')
    assert yard.store.stored_bytes() == inline + 10 * len(numbers)


def test_a_submission_locks_bulks_before_payloads_as_deletions_do(
    yard: Yard, open_another: Open, session: Any, database: str
) -> None:
    bulk, number = yard.bulk(), upload(yard.store)
    call = yard.submission(1, bulk_id=bulk.id, payloads=naming([number]))
    with psycopg.connect(database.replace("+psycopg", "")) as deletion, ThreadPoolExecutor(1) as threads:
        deletion.execute("SELECT 1 FROM bulks FOR UPDATE")
        submitting = threads.submit(open_another().submit, [call])
        eventually(lambda: _waiting(session) == 1)
        deletion.execute("SELECT 1 FROM payloads FOR UPDATE NOWAIT")
        deletion.rollback()
        (answer,) = submitting.result()
    assert isinstance(answer, Accepted)


def test_jobs_of_several_attempts_are_released_in_the_order_of_their_ids(
    yard: Yard, open_another: Open, session: Any, database: str
) -> None:
    first, second = yard.submit(2)
    yard.store.release(yard.claim([first]), owner=yard.owner)
    held = yard.claim([first, second])
    assert [job.attempt for job in held] == [2, 1]
    with psycopg.connect(database.replace("+psycopg", "")) as other, ThreadPoolExecutor(1) as threads:
        other.execute("SELECT 1 FROM jobs WHERE id = %s FOR UPDATE", [first])
        releasing = threads.submit(open_another().release, held, owner=yard.owner)
        eventually(lambda: _waiting(session) == 1)
        other.execute("SELECT 1 FROM jobs WHERE id = %s FOR UPDATE NOWAIT", [second])
        other.rollback()
        assert releasing.result() == [first, second]


def test_progress_waits_for_whoever_takes_the_job_away(
    yard: Yard, open_another: Open, session: Any, database: str
) -> None:
    (job,) = yard.claim(yard.submit(1))
    with psycopg.connect(database.replace("+psycopg", "")) as other, ThreadPoolExecutor(1) as threads:
        other.execute("UPDATE jobs SET attempt = attempt + 1")
        telling = threads.submit(open_another().report_progress, [(job, b'"late"')], owner=yard.owner)
        eventually(lambda: _waiting(session) == 1)
        other.commit()
        telling.result()
    assert session.execute("SELECT count(*) FROM job_progress").fetchone() == (0,)
