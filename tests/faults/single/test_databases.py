"""A database that is stopped, away, full or busy with something else under a running system."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest

from batchyard.jobs import Accepted, State
from batchyard.store import migrate
from batchyard.store.open import open_store
from tests.faults import servers
from tests.faults.single.factors import shortened
from tests.faults.single.system import System, system
from tests.services.consumers.yard import until
from tests.services.store.yard import Yard, succeeded

RESUME_SECONDS = 10.0
OUTAGE_SECONDS = 5.0
SLOW = """
[models.moody]
runtime = "batchyard_consumers.samples:Moody"
[pools.local]
models = ["moody"]
drain_seconds = 5
"""


def refused(answer: httpx.Response) -> bool:
    """Whether the database is away, said as it must be."""
    if answer.status_code == 202:
        return False
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["Retry-After"]) >= 1
    return True


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Postgres]:
    with servers.postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="module")
def running(postgres: servers.Postgres, valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("databases")
    with system(folder, broker_url=valkey_url, database=postgres.url, models=SLOW) as made:
        yield made


def test_an_immediate_stop_under_load_is_over_ten_seconds_after_the_start(
    running: System, postgres: servers.Postgres
) -> None:
    """What is finished meanwhile is kept by its consumer and written once the database is back, by the same claim."""
    ids = running.accepted(*({"do": "sleep", "value": 0.05} for _ in range(100)), model="moody")
    until(lambda: running.place.states(ids).get(State.SUCCEEDED, 0) > 0, yard=running.place)
    postgres.process.end()
    outage = time.monotonic() + shortened("outage", OUTAGE_SECONDS, stated=300.0)
    answers = 0
    while time.monotonic() < outage:
        assert refused(running.submit({"do": "echo"}, model="moody"))
        answers += 1
    assert answers >= OUTAGE_SECONDS / 2, "refused at once"
    assert running.client.get("/readyz").status_code == 503
    assert running.client.get("/healthz").status_code == 200
    postgres.process.start()
    began = time.monotonic()
    until(lambda: not refused(running.submit({"do": "echo"}, model="moody")), timeout=RESUME_SECONDS)
    print(f"accepting again after {time.monotonic() - began:.1f} s")
    running.finish(running.accepted({"do": "echo"}, model="moody"), timeout=RESUME_SECONDS)
    running.finish(ids)
    views = running.place.view(ids)
    assert {(view.state, view.attempt) for view in views} == {(State.SUCCEEDED, 1)}, "nothing ran twice"
    running.settle()


def test_a_database_that_hangs_holds_nobody_up_who_can_do_without(running: System, postgres: servers.Postgres) -> None:
    """Stopped by a signal: connections stand, requests are taken in and nothing is answered."""
    keys = [f"hung-{number}" for number in range(20)]
    ids = running.accepted(*({"do": "sleep", "value": 0.01} for _ in range(100)), model="moody")
    postgres.process.pause()
    with ThreadPoolExecutor(1) as thread:
        with running.stays_alive():
            asking = thread.submit(running.submit_under, keys, model="moody")
            time.sleep(shortened("outage", OUTAGE_SECONDS, stated=300.0))
            assert running.client.get("/readyz").status_code == 503
            assert not asking.done()
        postgres.process.go_on()
        began = time.monotonic()
        until(lambda: not refused(running.submit({"do": "echo"}, model="moody")), timeout=RESUME_SECONDS)
        print(f"accepting again after {time.monotonic() - began:.1f} s")
        asked = asking.result()
    assert running.submit_under(keys, model="moody") == asked
    running.finish([*ids, *asked])
    assert {view.attempt for view in running.place.view([*ids, *asked])} == {1}
    running.settle()


@contextmanager
def small_disk(folder: Path, *, megabytes: int) -> Iterator[None]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_answered_and_recovered_from_without_a_restart(tmp_path: Path, valkey_url: str) -> None:
    folder = tmp_path / "disk"
    with small_disk(folder, megabytes=64), system(folder, broker_url=valkey_url) as running:
        kept = running.accepted(*range(100))
        running.finish(kept)
        filler = folder / "filler"
        fill(filler)
        accepted: list[int] = []
        answer = running.submit(*["x" * 1000] * 500)
        while not refused(answer):
            accepted += [int(job_id, 16) for job_id in answer.json()["ids"]]
            answer = running.submit(*["x" * 1000] * 500)
        assert running.client.get("/healthz").status_code == 200
        assert running.place.states(kept) == {State.SUCCEEDED: 100}, "reading goes on"
        filler.unlink()
        until(lambda: not refused(running.submit(1)), timeout=RESUME_SECONDS)
        running.finish(accepted)
        assert running.api.running.poll() is None
        assert running.place.workers[0].poll() is None
        assert running.place.states(accepted) == ({State.SUCCEEDED: len(accepted)} if accepted else {})
        running.settle()


def fill(path: Path) -> None:
    """Write until the file system has a few pages left."""
    with path.open("wb", buffering=0) as file:
        stat = os.statvfs(path.parent)
        file.write(b"\0" * max(0, (stat.f_bavail - 64) * stat.f_frsize))


TRANSACTION_JOBS = int(os.environ.get("OPEN_TRANSACTION_JOBS", "60000"))
CLAIM_JOBS = max(100, TRANSACTION_JOBS // 4000)


@pytest.mark.slow
@pytest.mark.timeout(120 + TRANSACTION_JOBS // 500)
def test_a_transaction_left_open_does_not_slow_claims_down(
    postgres_database: Callable[[], str], tmp_path: Path
) -> None:
    """Dead rows that nobody may clean up gather behind the open transaction: claims must not go through them."""
    url = postgres_database()
    migrate.upgrade(url)
    store = open_store(url, state_dir=tmp_path)
    yard = Yard(store)
    shortened("jobs during the transaction", float(TRANSACTION_JOBS), stated=2_000_000.0)
    before = claim_seconds(yard, jobs=TRANSACTION_JOBS // 6)
    with psycopg.connect(url.replace("+psycopg", "")) as session:
        session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        session.execute("SELECT count(*) FROM jobs")
        meanwhile = claim_seconds(yard, jobs=TRANSACTION_JOBS)
    last = meanwhile[-len(meanwhile) // 4 :]
    figures = f"{1000 * p99(before):.1f} ms before, {1000 * p99(last):.1f} ms at the end of the transaction"
    print(f"claim p99 {figures}: {p99(last) / p99(before):.2f} times as long; the longest {1000 * max(last):.0f} ms")
    assert p99(last) <= 5 * p99(before)
    store.close()


def claim_seconds(yard: Yard, *, jobs: int) -> list[float]:
    """Submit, look at the head, claim and finish; how long each look and claim took."""
    took: list[float] = []
    for _ in range(jobs // 1000):
        (answer,) = yard.store.submit([yard.submission(1000)])
        assert isinstance(answer, Accepted)
        assert yard.store.renew(yard.owner, lease_ms=60_000, state="ready", stats={}).alive
        for _ in range(1000 // CLAIM_JOBS):
            began = time.monotonic()
            lines = yard.store.head(yard.queue, after={}, jobs=CLAIM_JOBS, urgent_before_ms=0)
            ids = [candidate.id for line in lines for candidate in line.candidates][:CLAIM_JOBS]
            claimed = yard.claim(ids)
            took.append(time.monotonic() - began)
            assert len(claimed) == CLAIM_JOBS
            yard.finish([succeeded(job) for job in claimed])
        yard.store.fold(limit=10_000)  # as the leader does
    return took


def p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(0.99 * len(seconds))]
