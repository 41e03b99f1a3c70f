"""Ten thousand callers wait at one API process: its memory stays bounded, and all are answered."""

from __future__ import annotations

import asyncio
import resource
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from batchyard.store import migrate
from batchyard.store.open import database_url
from tests.services.api.process import started
from tests.services.api.test_process import CONFIGURATION

POLLERS = 10_000
POLLER_BYTES = 40_000
"""The most that one may cost, connection and all."""


@pytest.fixture
def files() -> Iterator[None]:
    """So many connections, at both ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "batchyard.toml").write_text(CONFIGURATION)
    (tmp_path / ".batchyard").mkdir()
    migrate.upgrade(database_url("sqlite", state_dir=tmp_path / ".batchyard"))
    return tmp_path


async def poll(port: int, path: str, *, limit: asyncio.Semaphore) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    async with limit:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await writer.drain()
    return reader, writer


async def many(client: httpx.Client, job: str, *, pid: int) -> tuple[Counter[str], float]:
    """How all were answered, and what each cost in bytes while it waited."""
    server = psutil.Process(pid)
    before = server.memory_info().rss
    limit = asyncio.Semaphore(200)
    port = client.base_url.port or 0
    polls = await asyncio.gather(*(poll(port, f"/v1/jobs/{job}?wait=60", limit=limit) for _ in range(POLLERS)))
    await asyncio.to_thread(await_waiters, client)
    cost = (server.memory_info().rss - before) / POLLERS
    cancelled = await asyncio.to_thread(client.post, f"/v1/jobs/{job}/cancel")
    assert cancelled.status_code == 200
    async with asyncio.timeout(60):
        heads = await asyncio.gather(*(reader.readuntil(b"\r\n") for reader, _ in polls))
    for _, writer in polls:
        writer.close()
    return Counter(head.split()[1].decode() for head in heads), cost


def await_waiters(client: httpx.Client) -> None:
    end = time.monotonic() + 60
    while f"batchyard_waiters {float(POLLERS)}" not in client.get("/metrics").text:
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.usefixtures("files")
def test_ten_thousand_pollers_wait_within_bounds_and_are_all_answered(folder: Path) -> None:
    with started(folder) as (process, client):
        job = client.post("/v1/models/echo/jobs", json={"input": 1}).json()["id"]
        answered, cost = asyncio.run(many(client, job, pid=process.running.pid))
        print(f"{POLLERS} pollers cost {cost / 1000:.1f} KB each")
        assert answered == {"200": POLLERS}
        assert cost < POLLER_BYTES
        assert client.get("/healthz").status_code == 200
