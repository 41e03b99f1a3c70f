"""API processes that are killed while they take jobs in, and clients who wait in thousands or do not read."""

import json
import random
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from batchyard.jobs import State
from batchyard.store import migrate
from batchyard.store.open import database_url, open_store
from tests.services.api.process import Process, started
from tests.services.store.yard import Yard, check_ledgers, succeeded

CONFIGURATION = """
[models.echo]
runtime = "tests:Echo"
[pools.local]
models = ["echo"]
"""
CHUNK = 5_000
KILLS = 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "batchyard.toml").write_text(CONFIGURATION)
    (tmp_path / ".batchyard").mkdir()
    migrate.upgrade(database_url("sqlite", state_dir=tmp_path / ".batchyard"))
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_bulk_fed_through_kills_has_every_chunk_once(folder: Path) -> None:
    """A chunk is there wholly or not at all, and the same chunk sent again after the kill is the same jobs."""
    rng = random.Random(11)
    store = open_store("sqlite", state_dir=folder / ".batchyard")
    bulk = ""
    for number in range(KILLS):
        with started(folder) as (process, client):
            bulk = bulk or client.post("/v1/bulks", json={"model": "echo", "chunk_size": CHUNK}).json()["id"]
            killer = threading.Timer(rng.uniform(0.0, 0.15), process.running.kill)
            killer.start()
            with suppress(httpx.TransportError):
                feed(client, bulk, number)
            killer.join()
            process.end()
        assert store.get_bulk(int(bulk, 16), tenant_id=1).jobs % CHUNK == 0, "all or nothing"
    with started(folder) as (_, client):
        for number in range(KILLS):
            answer = feed(client, bulk, number)
            assert answer.is_success, answer.text
        assert client.post(f"/v1/bulks/{bulk}/seal").is_success
    view = store.get_bulk(int(bulk, 16), tenant_id=1)
    assert (view.jobs, view.counts) == (KILLS * CHUNK, {State.QUEUED: KILLS * CHUNK})
    assert sum(row.jobs for row in store.recount()) == KILLS * CHUNK
    check_ledgers(store)
    store.close()


def feed(client: httpx.Client, bulk: str, number: int) -> httpx.Response:
    inputs = [{"n": number * CHUNK + n} for n in range(CHUNK)]
    headers = {"Idempotency-Key": f"chunk-{number}"}
    return client.post(f"/v1/bulks/{bulk}/jobs", json={"inputs": inputs}, headers=headers)


POLLERS = 10_000
BYTES_PER_POLLER = 64 * 1024
SLOW_READERS = 20
RESULT_BYTES = 100_000
SLOW_JOBS = 400
"""Together 40 MB of results, which each reader would make the server hold if it were let."""


@contextmanager
def many_files() -> Iterator[None]:
    """Room for as many connections, here and in the processes begun meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < POLLERS + 500:
        pytest.skip(f"this account may open {hard} files, and {POLLERS + 500} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident(process: Process) -> int:
    return int(psutil.Process(process.running.pid).memory_info().rss)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_ten_thousand_pollers_cost_a_bounded_memory_and_are_all_answered(folder: Path) -> None:
    with many_files(), started(folder) as (process, client), ExitStack() as connections:
        ids = client.post("/v1/models/echo/jobs", json={"inputs": list(range(100))}).json()["ids"]
        before = resident(process)
        pollers: list[socket.socket] = []
        for number in range(POLLERS):
            poller = connections.enter_context(socket.create_connection(("127.0.0.1", client.base_url.port or 0)))
            poller.sendall(f"GET /v1/jobs/{ids[number % 100]}?wait=60 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            pollers.append(poller)
        await_waiters(client, POLLERS)
        assert resident(process) - before < POLLERS * BYTES_PER_POLLER
        began = time.monotonic()
        assert client.get("/healthz").status_code == 200
        assert client.post("/v1/models/echo/jobs", json={"input": 1}).status_code == 202
        assert time.monotonic() - began < 2, "others are served meanwhile"
        for job_id in ids:
            assert client.post(f"/v1/jobs/{job_id}/cancel").is_success
        for poller in pollers:
            poller.settimeout(60)
            assert b" 200 " in poller.recv(100).split(b"\r\n")[0]


def await_waiters(client: httpx.Client, count: int) -> None:
    end = time.monotonic() + 60
    while waiters(client) < count:
        assert time.monotonic() < end, f"{waiters(client)} of {count} wait"
        time.sleep(0.1)


def waiters(client: httpx.Client) -> int:
    lines = client.get("/metrics").text.splitlines()
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith("batchyard_waiters")))


def test_readers_who_do_not_read_cost_a_bounded_memory(folder: Path) -> None:
    store = open_store("sqlite", state_dir=folder / ".batchyard")
    with started(folder) as (process, client), ExitStack() as connections:
        bulk = client.post("/v1/bulks", json={"model": "echo"}).json()["id"]
        inputs: list[Any] = [{"n": n} for n in range(SLOW_JOBS)]
        fed = client.post(f"/v1/bulks/{bulk}/jobs", json={"inputs": inputs}, headers={"Idempotency-Key": "k"})
        assert fed.is_success, fed.text
        yard = Yard(store)
        queue_id = store.get_bulk(int(bulk, 16), tenant_id=1).queue_id
        lines = store.head(queue_id, after={}, jobs=SLOW_JOBS, urgent_before_ms=0)
        jobs = yard.claim([candidate.id for line in lines for candidate in line.candidates], queue=queue_id)
        assert len(jobs) == SLOW_JOBS
        body = json.dumps("x" * RESULT_BYTES).encode()
        for start in range(0, SLOW_JOBS, 10):
            yard.finish([succeeded(job, body=body) for job in jobs[start : start + 10]])
        before = resident(process)
        for _ in range(SLOW_READERS):
            reader = connections.enter_context(socket.create_connection(("127.0.0.1", client.base_url.port or 0)))
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.sendall(f"GET /v1/bulks/{bulk}/results HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            assert b" 200 " in reader.recv(100)
        assert client.post("/v1/models/echo/jobs", json={"input": 1}).status_code == 202
        whole = SLOW_JOBS * RESULT_BYTES
        grown = resident(process) - before
        print(f"{SLOW_READERS} readers of {whole / 1e6:.0f} MB each made the process grow by {grown / 1e6:.0f} MB")
        assert grown < SLOW_READERS * whole / 4
        with client.stream("GET", f"/v1/bulks/{bulk}/results") as stream:
            assert sum(1 for line in stream.iter_lines() if '"result"' in line) == SLOW_JOBS, "others read on"
    store.close()
