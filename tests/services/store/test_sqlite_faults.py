"""SQLite's own troubles: a full disk, another writer, many processes, closing; and plans that never change."""

import multiprocessing
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pysqlite3 import dbapi2

from batchyard.errors import Unavailable
from batchyard.jobs import Outcome, State
from batchyard.store import migrate
from batchyard.store.sqlite import SqliteStore, admission, claims, file, reads
from tests.services.store.another_process import work
from tests.services.store.yard import TENANT, Yard, check_ledgers, succeeded


@pytest.fixture
def path(tmp_path: Path) -> Path:
    migrate.upgrade(f"sqlite:///{tmp_path / 'batchyard.db'}")
    return tmp_path / "batchyard.db"


@pytest.fixture
def yard(path: Path) -> Iterator[Yard]:
    store = SqliteStore(path)
    yield Yard(store)
    store.close()


def _raw(yard: Yard) -> Any:
    assert isinstance(yard.store, SqliteStore)
    with yard.store._file.writing() as handle:
        return handle.raw


def test_a_full_disk_is_answered_and_nothing_half_written_stays(yard: Yard) -> None:
    kept = yard.submit(3)
    raw = _raw(yard)
    pages = raw.execute("PRAGMA page_count").fetchone()[0]
    raw.execute(f"PRAGMA max_page_count = {pages + 5}")
    with pytest.raises(Unavailable, match="full") as refused:
        yard.submit(5_000)
    assert refused.value.retry_after_seconds is not None
    assert [row.jobs for row in yard.store.recount()] == [3]
    check_ledgers(yard.store)
    raw.execute("PRAGMA max_page_count = 1073741823")
    assert len(yard.submit(5_000)) == 5_000
    assert len(yard.run(kept)) == 3
    check_ledgers(yard.store)


def test_a_writer_that_takes_no_turns_is_waited_for_and_then_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "BUSY_SECONDS", 0.05)
    store = SqliteStore(path)
    yard = Yard(store)
    stranger = dbapi2.connect(path, isolation_level=None)
    stranger.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked"):
        yard.submit(1)
    assert yard.store.backlog() == [], "readers do not care"
    stranger.execute("ROLLBACK")
    stranger.close()
    assert len(yard.submit(1)) == 1
    store.close()


def test_only_a_claim_may_be_undone_by_a_power_cut(yard: Yard) -> None:
    raw = _raw(yard)
    yard.run(yard.submit(1))  # registers a consumer
    said: list[str] = []
    raw.set_trace_callback(said.append)
    (job,) = yard.submit(1)
    claimed = yard.claim([job])
    yard.finish([succeeded(claimed[0])])
    raw.set_trace_callback(None)
    levels = [word for word in said if word.startswith(("PRAGMA synchronous", "COMMIT"))]
    assert levels == ["COMMIT", "PRAGMA synchronous = NORMAL", "COMMIT", "PRAGMA synchronous = FULL", "COMMIT"]
    assert raw.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_closed_store_says_so(path: Path) -> None:
    store = SqliteStore(path)
    yard = Yard(store)
    store.close()
    store.close()
    with pytest.raises(Unavailable, match="closed"):
        yard.submit(1)
    with pytest.raises(Unavailable, match="closed"):
        store.ping()


def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "batchyard.db").write_bytes(b"something else entirely" * 1_000)
    store = SqliteStore(tmp_path / "batchyard.db")
    with pytest.raises(Unavailable, match="not a database"):
        store.ping()
    store.close()


def test_eight_processes_write_without_losing_or_doubling_anything(path: Path, yard: Yard) -> None:
    spawning = multiprocessing.get_context("spawn")
    workers = [spawning.Process(target=work, args=(path, yard.queue, 10, n)) for n in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    lines = yard.store.head(yard.queue, after={}, jobs=10_000, urgent_before_ms=0)
    left = yard.run(candidate.id for line in lines for candidate in line.candidates)
    check_ledgers(yard.store)
    (row,) = yard.store.recount()
    assert (row.state, row.jobs) == (State.SUCCEEDED, 8 * 10 * 20)
    assert sum(usage.jobs for usage in yard.store.usage()) == 8 * 10 * 20
    assert len(left) < 8 * 10 * 20


def test_threads_share_one_store(yard: Yard) -> None:
    claimed: list[int] = []
    ids = yard.submit(400)

    def take(part: int) -> None:
        for start in range(0, 400, 20):
            jobs = yard.claim(ids[start : start + 20] if part % 2 else ids[380 - start : 400 - start])
            claimed.extend(yard.finish([succeeded(job) for job in jobs]))
            yard.store.get_jobs(ids[:5], tenant_id=TENANT)

    threads = [threading.Thread(target=take, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(claimed) == ids
    check_ledgers(yard.store)


BY_KEY = {
    "candidates": claims._CANDIDATES,
    "claim": claims._CLAIM,
    "succeed": claims._SUCCEED,
    "fail": claims._FAIL,
    "cancel": claims._CANCEL,
    "wait": claims._WAIT,
    "standing": claims.STANDING,
    "views": reads._VIEWS,
    "results": reads._RESULTS,
    "unfinished": reads._UNFINISHED,
    "known keys": admission._KEYS,
}
BY_HEAD = {
    "front": reads._FRONT,
    "oldest": reads._OLDEST,
    "stragglers": reads._STRAGGLERS,
    "standing": reads._STANDING,
}


def _plan(raw: Any, statement: str) -> list[str]:
    bound = [None] * len(set(re.findall(r"\?\d*", statement)))
    return [row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {statement}", bound)]


@pytest.mark.parametrize("filled", [False, True])
def test_hot_statements_find_rows_by_key_on_tables_never_analysed(yard: Yard, filled: bool) -> None:
    if filled:
        jobs = yard.claim(yard.submit(2_000))
        yard.finish([Outcome(job, State.SUCCEEDED, body=b"1") for job in jobs[:1_000]])
    raw = _raw(yard)
    for name, statement in BY_KEY.items():
        for step in _plan(raw, statement):
            if re.match(r"(SCAN|SEARCH) (j|i|r|jobs|job_inputs|job_results)\b", step):
                assert re.search(r"PRIMARY KEY", step), f"{name}: {step}"
    for name, statement in BY_HEAD.items():
        assert any(
            "jobs_head (queue_id=? AND tenant_id=? AND priority=? AND id" in step for step in _plan(raw, statement)
        ), name
    assert any("bulks_sweep" in step for step in _plan(raw, claims.PERMIT))


def test_shared_statements_use_their_partial_indexes(yard: Yard) -> None:
    """Those that a bound parameter, or a condition worded otherwise, would turn into a walk through all jobs."""
    store = yard.store
    assert isinstance(store, SqliteStore)
    yard.submit(10, deadline_ms=store.now_ms() - 1)
    plans: list[str] = []
    wanted = {"jobs_due": store.promote_due, "jobs_deadline": store.expire_due, "jobs_owned": store.reap}
    for index, chore in wanted.items():
        plans.clear()
        with store._file.reading() as handle:
            handle.raw.set_trace_callback(plans.append)
        chore(limit=10)
        with store._file.reading() as handle:
            handle.raw.set_trace_callback(None)
        statements = [text for text in plans if text.startswith("SELECT jobs.id")]
        assert statements, chore
        steps = [step for text in statements for step in _plan(_raw(yard), text)]
        assert any(f"USING INDEX {index}" in step for step in steps), steps
