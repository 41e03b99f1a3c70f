"""Connections to Postgres that end at the worst moment."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from batchyard.errors import Unavailable
from batchyard.jobs import Accepted, Outcome, State
from batchyard.store.base import JobStore
from batchyard.store.postgres import PostgresStore
from batchyard.store.postgres.session import ConnectionLost
from tests.services.store.yard import TENANT, Yard, eventually, naming, succeeded, upload

pytestmark = pytest.mark.parametrize("database", ["postgres"], indirect=True)


class Wire:
    """Cuts hot statements that contain certain words: `losing` after the server has committed, `cutting` before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.losing: list[str] = []
        self.cutting: list[str] = []
        execute = PostgresStore._execute

        def cut(words: list[str], text: bytes) -> None:
            if words and words[0].encode() in text:
                words.pop(0)
                raise ConnectionLost("cut")

        def lossy(store: PostgresStore, statement: Any, arguments: Any) -> Any:
            cut(self.cutting, statement.text)
            rows = execute(store, statement, arguments)
            cut(self.losing, statement.text)
            return rows

        monkeypatch.setattr(PostgresStore, "_execute", lossy)


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    return Wire(monkeypatch)


SUBMIT, CLAIM, FINISH, RECLAIM = "INSERT INTO jobs", "SKIP LOCKED", "INSERT INTO job_results", "m.started_at >"


def end_connections(database: str, *, like: str = "%") -> int:
    """Terminate the store's connections, as an administrator or a fail-over does."""
    with psycopg.connect(database.replace("+psycopg", ""), autocommit=True) as session:
        ended = session.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE %s",
            (like,),
        ).fetchall()
    return len(ended)


def test_a_submission_whose_answer_was_lost_is_not_made_twice(yard: Yard, wire: Wire) -> None:
    wire.losing = [SUBMIT]
    answers = yard.store.submit(
        [yard.submission(3), yard.submission(2, idempotency_key="k"), yard.submission(1, bulk_id=4711)]
    )
    assert wire.losing == []
    first, second, refused = answers
    assert isinstance(first, Accepted)
    assert isinstance(second, Accepted)
    assert not second.replayed
    assert isinstance(refused, Exception)
    assert sum(row.jobs for row in yard.store.recount()) == 5
    assert yard.states([*first.ids, *second.ids]) == [State.QUEUED] * 5


def test_a_submission_whose_answer_was_lost_counts_its_payload_once(yard: Yard, wire: Wire) -> None:
    number = upload(yard.store, size=1000)
    wire.losing = [SUBMIT]
    ids = yard.submit(2, payloads=naming([number], [number]))
    assert wire.losing == []
    assert yard.store.stored_bytes() == 2 * len(b'{"n": 0}') + 1000
    for job_id in ids:
        yard.store.cancel(job_id, tenant_id=TENANT)
        assert yard.store.get_payloads([number]) != []
        yard.store.forget(job_id, tenant_id=TENANT)
    assert yard.store.get_payloads([number]) == []
    assert yard.store.stored_bytes() == 0


def test_a_claim_whose_answer_was_lost_is_returned_all_the_same(yard: Yard, wire: Wire) -> None:
    held = yard.submit(2)
    yard.claim(held)
    ids = yard.submit(3)
    wire.losing = [CLAIM]
    claimed = yard.claim([*held, *ids])
    assert [job.id for job in claimed] == ids
    assert {job.attempt for job in claimed} == {1}
    assert len(yard.finish([succeeded(job) for job in claimed])) == 3


def test_a_claim_lost_for_longer_is_returned_by_the_next_one(yard: Yard, wire: Wire) -> None:
    lost, more = yard.submit(2), yard.submit(2)
    wire.losing = [CLAIM, RECLAIM]
    with pytest.raises(ConnectionLost):
        yard.claim(lost)
    assert sorted(job.id for job in yard.claim(more)) == [*lost, *more]
    assert yard.claim([*lost, *more]) == []


def test_outcomes_whose_answer_was_lost_count_as_written(yard: Yard, wire: Wire) -> None:
    jobs = yard.claim(yard.submit(3))
    wire.losing = [FINISH]
    assert yard.finish([succeeded(job) for job in jobs]) == [job.id for job in jobs]
    assert sum(row.jobs for row in yard.store.usage()) == 3


def test_statements_that_never_arrived_are_sent_again(yard: Yard, wire: Wire) -> None:
    wire.cutting = [SUBMIT]
    ids = yard.submit(3)
    wire.cutting = [CLAIM]
    jobs = yard.claim(ids)
    assert [job.id for job in jobs] == ids
    wire.cutting = [FINISH]
    assert yard.finish([succeeded(job) for job in jobs]) == ids
    assert wire.cutting == []


def test_random_ends_of_connections_lose_and_double_nothing(
    yard: Yard, open_another: Callable[[], JobStore], database: str
) -> None:
    """Submitters and consumers go on while their connections are ended at any moment."""
    stop = threading.Event()
    made: list[int] = []

    def submit(store: JobStore) -> None:
        while not stop.is_set():
            with suppress(Unavailable):
                (answer,) = store.submit([yard.submission(50)])
                assert isinstance(answer, Accepted)
                made.extend(answer.ids)

    def consume(store: JobStore, owner: int) -> None:
        unwritten: list[Outcome] = []
        while unwritten or not stop.is_set() or _queued(store):
            with suppress(Unavailable):
                if not unwritten:
                    ids = store.stragglers(yard.queue, below={(TENANT, 5): 1 << 62}, limit=100)
                    unwritten = [succeeded(job) for job in store.claim([(yard.queue, ids)], owner=owner)]
                store.finish(unwritten, owner=owner)
                unwritten = []

    with ThreadPoolExecutor(4) as threads:
        working = [threads.submit(submit, open_another()), threads.submit(submit, open_another())]
        working += [threads.submit(consume, open_another(), yard.consumer()) for _ in range(2)]
        eventually(lambda: end_connections(database) + len(made) > 3000, seconds=30.0)
        stop.set()
        for each in working:
            each.result()
    states = Counter(State(row.state) for row in yard.store.recount() for _ in range(row.jobs))
    # A job of a submission that was answered with Unavailable may exist; none that was accepted may be missing.
    assert set(states) == {State.SUCCEEDED}
    assert len(made) == len(set(made)) <= states[State.SUCCEEDED]
    views = yard.store.get_jobs(made, tenant_id=TENANT)
    assert len(views) == len(made)
    assert all(view.result_body is not None and view.result_body.startswith(b'{"id": %d,' % view.id) for view in views)
    assert sum(row.jobs for row in yard.store.usage()) == states[State.SUCCEEDED]


def _queued(store: JobStore) -> bool:
    try:
        return any(row.state < State.SUCCEEDED and row.jobs for row in store.backlog())
    except Unavailable:
        return True


def test_idle_connections_that_the_server_ended_are_replaced_unnoticed(yard: Yard, database: str) -> None:
    ids = yard.submit(2)
    assert end_connections(database) > 0
    jobs = yard.claim(ids)
    assert end_connections(database) > 0
    assert yard.finish([succeeded(job) for job in jobs]) == ids
    assert end_connections(database) > 0
    assert yard.states(ids) == [State.SUCCEEDED] * 2
    assert end_connections(database) > 0
    assert len(yard.submit(1)) == 1


def test_a_finish_ended_by_the_server_is_sent_again(yard: Yard, database: str) -> None:
    ids = yard.submit(2)
    outcomes = [succeeded(job) for job in yard.claim(ids)]
    with psycopg.connect(database.replace("+psycopg", "")) as blocker, ThreadPoolExecutor(1) as threads:
        blocker.execute("SELECT 1 FROM jobs WHERE id = %s FOR UPDATE", (ids[1],))
        finishing = threads.submit(yard.finish, outcomes)
        eventually(lambda: end_connections(database, like="%given AS%") == 1)
        blocker.rollback()
        assert finishing.result() == ids


def test_a_lock_that_somebody_keeps_makes_the_database_unavailable(
    yard: Yard, open_another: Callable[[], JobStore], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_hot_session(), "lock_timeout", "50ms")
    hasty = open_another()
    outcomes = [succeeded(job) for job in yard.claim(yard.submit(1))]
    with psycopg.connect(database.replace("+psycopg", "")) as blocker:
        blocker.execute("SELECT 1 FROM jobs FOR UPDATE")
        with pytest.raises(Unavailable, match="lock timeout") as refused:
            hasty.finish(outcomes, owner=yard.owner)
    assert not isinstance(refused.value, ConnectionLost)
    assert refused.value.retry_after_seconds
    assert hasty.finish(outcomes, owner=yard.owner)


def _hot_session() -> dict[str, str]:
    from batchyard.store.postgres import pool

    return pool.HOT_SESSION


def test_a_server_that_is_away_is_unavailable_at_once(yard: Yard) -> None:
    away = PostgresStore("postgresql+psycopg://nobody@/nothing?host=/nowhere")
    started = time.monotonic()
    for use in (away.ping, away.now_ms, away.backlog, lambda: away.claim([(1, [1])], owner=1)):
        with pytest.raises(Unavailable) as refused:
            use()
        assert refused.value.retry_after_seconds
    assert time.monotonic() - started < 5
    away.close()


def test_the_clock_is_the_servers(yard: Yard, database: str) -> None:
    with psycopg.connect(database.replace("+psycopg", "")) as session:
        before = yard.store.now_ms()
        row = session.execute("SELECT extract(epoch FROM clock_timestamp()) * 1000").fetchone()
        after = yard.store.now_ms()
    assert row is not None
    assert before - 20 <= row[0] <= after + 20


def test_durability_names_the_setting_in_force(yard: Yard) -> None:
    assert yard.store.durability() == "postgres synchronous_commit=on"


def test_numbers_that_no_row_can_have_are_claimed_by_nobody(yard: Yard) -> None:
    ids = yard.submit(2)
    assert yard.store.claim([(1 << 40, ids), (-1, ids)], owner=yard.owner) == []
    assert [job.id for job in yard.claim([-1, 1 << 63, 1 << 70, ids[0]])] == ids[:1]
    mixed = [(1 << 40, ids), (yard.queue, [1 << 70, -5, ids[1]])]
    assert [job.id for job in yard.store.claim(mixed, owner=yard.owner)] == ids[1:]
