"""The whole system as a user runs it, with trouble in between: real processes, and every job accounted for."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import redis

from batchyard import Bulk, Client
from batchyard.broker.embedded import socket_path
from batchyard.jobs import State
from batchyard.store.base import JobStore
from batchyard.store.open import open_store
from tests.services.store.yard import check_ledgers
from tests.services.up import Up, eventually, running_up

pytestmark = pytest.mark.slow

PACED = """
import time
from batchyard.model import Model

class Paced(Model):
    \"\"\"Answers each input with itself, 2,500 a second and consumer.\"\"\"

    def forward(self, items):
        time.sleep(0.0004 * len(items))
        return items
"""
CONFIG = """
[queues]
lease_seconds = 3
[models.paced]
runtime = "paced:Paced"
[pools.local]
models = ["paced"]
device = "cpu"
min = {consumers}
max = {consumers}
drain_seconds = 2
"""
JOBS = 20_000


@contextmanager
def whole(folder: Path, *, consumers: int = 1, more: str = "") -> Iterator[Up]:
    (folder / "paced.py").write_text(PACED)
    with running_up(folder, config=CONFIG.format(consumers=consumers) + more) as up:
        yield up


def check_map(client: Client, *, meanwhile: Sequence[Callable[[], None]] = ()) -> str:
    """Map all inputs, doing something each time another part of them is done; returns the id of the bulk."""
    results = client.map("paced", ({"n": n} for n in range(JOBS)), errors="yield")
    deeds = {(number + 1) * JOBS // (len(meanwhile) + 1): deed for number, deed in enumerate(meanwhile)}
    seen: set[int] = set()
    for result in results:
        assert result.value == {"n": result.index}, result.error
        assert result.index not in seen
        seen.add(result.index)
        if len(seen) in deeds:
            deeds[len(seen)]()
    assert seen == set(range(JOBS))
    return results.bulk_id


def check_store(store: JobStore, *, bulk_id: str, jobs: int = JOBS) -> None:
    """Each job of the bulk has ended once: by the results' order, by what was used, and by counting."""
    eventually(lambda: not store.has_unnumbered(int(bulk_id, 16)))
    rows = store.bulk_results(int(bulk_id, 16), after_seq=0, limit=10 * jobs)
    assert sorted(row.index for row in rows) == list(range(jobs))
    assert sum(row.jobs for row in store.usage()) == jobs
    assert {row.state: row.jobs for row in store.backlog()} == {State.SUCCEEDED: jobs}
    check_ledgers(store)


def test_everything_on_postgres_and_rabbitmq(
    tmp_path: Path, rabbitmq_url: str, postgres_database: Callable[[], str]
) -> None:
    database = postgres_database()
    servers = f'[database]\nurl = "{database}"\n[broker]\nurl = "{rabbitmq_url}"\n'
    with whole(tmp_path, more=servers) as up:
        with Client(up.url) as client:
            assert client.submit("paced", {"a": "ä"}).result(timeout=60) == {"a": "ä"}
            jobs = client.submit_many("paced", range(1000))
            assert [job.result() for job in client.lookup(jobs, wait=60)] == list(range(1000))
            ordered = client.map("paced", range(JOBS), ordered=True)
            assert [result.value for result in ordered] == list(range(JOBS))
            status = client.status()
            assert (status.broker, status.database.split()[0]) == ("up", "postgres")
        source = tmp_path / "in.jsonl"
        source.write_text("".join(f"{n}\n" for n in range(2000)))
        done = up.run("map", "paced", str(source), "-o", str(tmp_path / "out.jsonl"), "--ordered")
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / "out.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [{"index": n, "result": n} for n in range(2000)]
        assert up.stop() == 0
    store = open_store(database, state_dir=tmp_path)
    assert {row.state: row.jobs for row in store.backlog()} == {State.SUCCEEDED: 1 + 1000 + JOBS + 2000}
    check_ledgers(store)
    store.close()


@pytest.mark.timeout(240)
def test_consumers_that_are_killed_cost_no_job_and_double_none(tmp_path: Path) -> None:
    with whole(tmp_path, consumers=2) as up:

        def kill(number: int) -> None:
            for worker in up.children("worker")[:number]:
                worker.kill()

        with Client(up.url, retry_seconds=60) as client:
            assert eventually(lambda: len(up.children("worker")) == 2)
            bulk_id = check_map(client, meanwhile=[lambda: kill(1), lambda: kill(2), lambda: kill(1)])
        assert up.stop() == 0
    assert sum("was ended by SIGKILL" in line for line in up.lines) >= 3
    store = open_store("sqlite", state_dir=tmp_path / ".batchyard")
    check_store(store, bulk_id=bulk_id)
    store.close()


def test_a_broker_that_is_emptied_costs_no_job(tmp_path: Path) -> None:
    with whole(tmp_path) as up:
        broker = redis.Redis(unix_socket_path=str(socket_path(tmp_path / ".batchyard")))
        lost = []

        def empty() -> None:
            lost.append(sum(broker.llen(key) for key in broker.scan_iter() if broker.type(key) == b"list"))
            broker.flushall()

        with Client(up.url) as client:
            bulk_id = check_map(client, meanwhile=[empty] * 5)
        assert up.stop() == 0
    assert max(lost) > 0
    store = open_store("sqlite", state_dir=tmp_path / ".batchyard")
    check_store(store, bulk_id=bulk_id)
    store.close()


FLOOD = 100_000
SMALL = 500


@pytest.mark.timeout(240)
def test_a_flood_of_one_tenant_does_not_drown_the_others(tmp_path: Path) -> None:
    """One tenant has 40 s of work in the queue; nine that come then have a second's together."""
    with whole(tmp_path) as up, Client(up.url) as client:
        flood = client.bulk("paced", chunk_size=10_000)
        for first in range(0, FLOOD, 10_000):
            flood.add(list(range(first, first + 10_000)))
        assert eventually(lambda: ended(flood) > 1000, seconds=60)

        before = ended(flood)
        took = [0.0] * 9
        threads = [threading.Thread(target=be_served, args=(up.url, number, took)) for number in range(9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        meanwhile = ended(flood) - before
    # In the order of arrival each would wait for all of the flood, about 40 s. What was ticketed already, two seconds'
    # worth and what the consumer holds, still goes before them; then the flood has a tenth of the consumer.
    assert all(0 < each < 20 for each in took), took
    assert meanwhile < 4 * 9 * SMALL


def be_served(url: str, number: int, took: list[float]) -> None:
    """A tenant of its own submits a few jobs and waits for all of them."""
    with httpx.Client(base_url=url) as admin:
        name = f"small-{number}"
        assert admin.post("/v1/tenants", json={"name": name}).status_code == 201
        key = admin.post("/v1/keys", json={"name": "test", "tenant": name}).json()["key"]
    with Client(url, api_key=key) as client:
        begun = time.monotonic()
        jobs = client.submit_many("paced", range(SMALL))
        assert [job.result() for job in client.lookup(jobs, wait=60)] == list(range(SMALL))
        took[number] = time.monotonic() - begun


def ended(bulk: Bulk) -> int:
    return bulk.refresh().counts.get("succeeded", 0)
