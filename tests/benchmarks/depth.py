"""What a deep backlog does: to the store's calls, to `/metrics` and a poll over HTTP, and to the broker's memory."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import redis

from tests.benchmarks.models import make_input
from tests.benchmarks.system import System, running_system
from tests.servers import postgres_server

SLOW = '[models.noop]\nruntime = "tests.benchmarks.models:Slow"\nbatch_budget = 16\n'
SHALLOW = 1_000
TENANT_CHUNK = 10_000


def measure(*, database: str, deep: int) -> Iterator[str]:
    """Lines of a report; the ratio of every call is deep over shallow."""
    yield f"-- {database}: the store's calls"
    if database == "postgres":
        with postgres_server() as server:
            yield from _store(server.create_database(), server.create_database(), deep=deep)
    else:
        with tempfile.TemporaryDirectory(prefix="by-depth-") as folder:
            yield from _store(f"sqlite:///{folder}/shallow.db", f"sqlite:///{folder}/deep.db", deep=deep)
    yield f"-- {database}: a whole system whose one consumer does about 300 jobs a second"
    yield from _system(database=database, deep=deep)


def _store(*urls: str, deep: int) -> Iterator[str]:
    command = [sys.executable, "-m", "tests.benchmarks.store", *urls, "--shallow", str(SHALLOW), "--deep", str(deep)]
    yield from subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def _system(*, database: str, deep: int) -> Iterator[str]:
    with (
        running_system(database=database, models=SLOW) as system,
        httpx.Client(base_url=system.url, timeout=60) as http,
    ):
        empty = _broker_bytes(system)
        _submit(http, SHALLOW)
        few = _times(http)
        _submit(http, deep)
        time.sleep(5)  # the window is full by now, and the backlog far from empty
        many = _times(http)
        grown = _broker_bytes(system) - empty
        left = sum(
            int(line.rsplit(" ", 1)[1].split(".")[0])
            for line in http.get("/metrics").text.splitlines()
            if _is_queued(line)
        )
    for name in few:
        yield f"{name:32} {few[name]:9.2f} ms {many[name]:9.2f} ms {many[name] / few[name]:8.2f}"
    yield f"broker memory above empty, {left:,} queued: {grown / 2**20:.1f} MB"


def _is_queued(line: str) -> bool:
    return line.startswith("batchyard_backlog_jobs{") and 'state="queued"' in line


def _submit(http: httpx.Client, jobs: int) -> None:
    for first in range(0, jobs, TENANT_CHUNK):
        inputs = [make_input(n) for n in range(first, min(first + TENANT_CHUNK, jobs))]
        http.post("/v1/models/noop/jobs", json={"inputs": inputs}).raise_for_status()


def _times(http: httpx.Client, *, rounds: int = 40) -> dict[str, float]:
    """Median milliseconds of calls over HTTP."""
    job = http.post("/v1/models/noop/jobs", json={"input": make_input(0)}).headers["Location"]
    calls: dict[str, Callable[[], httpx.Response]] = {
        "GET /metrics": lambda: http.get("/metrics"),
        "GET /v1/jobs/{id}": lambda: http.get(job),
        "GET /v1/jobs?state=queued": lambda: http.get("/v1/jobs", params={"state": "queued"}),
        "GET /v1/models": lambda: http.get("/v1/models"),
        "POST one job": lambda: http.post("/v1/models/noop/jobs", json={"input": make_input(0)}),
    }
    found: dict[str, float] = {}
    for name, call in calls.items():
        times = []
        for _ in range(rounds):
            before = time.perf_counter()
            call().raise_for_status()
            times.append((time.perf_counter() - before) * 1e3)
        found[name] = statistics.median(times)
    return found


def _broker_bytes(system: System) -> int:
    """Memory of the embedded broker, as it says itself."""
    memory: dict[str, int] = _broker(system).info("memory")
    return memory["used_memory"]


def _broker(system: System) -> redis.Redis:
    from batchyard.broker.embedded import resolve_broker_url
    from batchyard.configuration import load_settings

    settings = load_settings(config=system.directory / "batchyard.toml")
    path = Path(resolve_broker_url(settings).removeprefix("redis+socket://"))
    return redis.Redis(unix_socket_path=str(path))
