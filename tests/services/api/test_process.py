"""`batchyard api` as a process: it comes up, refuses an open door, and ends in order."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from batchyard.store import migrate
from batchyard.store.open import database_url, open_store
from tests.servers.processes import free_port

CONFIGURATION = """
[models.echo]
runtime = "tests:Echo"
[pools.local]
models = ["echo"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a configuration and a database in it."""
    (tmp_path / "batchyard.toml").write_text(CONFIGURATION)
    (tmp_path / ".batchyard").mkdir()
    migrate.upgrade(database_url("sqlite", state_dir=tmp_path / ".batchyard"))
    return tmp_path


class Process:
    """One `batchyard api` and what it logged."""

    def __init__(self, folder: Path, *, bind: str) -> None:
        command = [sys.executable, "-W", "error", "-m", "batchyard.cli", "api", "--bind", bind]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BATCHYARD_")}
        self.running = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)

    def end(self) -> tuple[int, str]:
        """Its exit status and what it logged, once it has ended."""
        _, logged = self.running.communicate(timeout=30)
        return self.running.returncode, logged


@contextmanager
def started(folder: Path) -> Iterator[tuple[Process, httpx.Client]]:
    port = free_port()
    process = Process(folder, bind=f"127.0.0.1:{port}")
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            await_ready(client, process)
            yield process, client
    finally:
        if process.running.poll() is None:
            process.running.kill()
            process.running.communicate()


def await_ready(client: httpx.Client, process: Process) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            assert process.running.poll() is None, process.end()
        assert time.monotonic() < end
        time.sleep(0.02)


def events(logged: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in logged.splitlines()]


def test_it_ends_within_seconds_and_answers_who_waits(folder: Path) -> None:
    answers: list[httpx.Response] = []
    with started(folder) as (process, client):
        job = client.post("/v1/models/echo/jobs", json={"input": 1}).json()["id"]
        poll = threading.Thread(target=lambda: answers.append(client.get(f"/v1/jobs/{job}?wait=60")))
        poll.start()
        await_waiter(client)
        began = time.monotonic()
        process.running.send_signal(signal.SIGTERM)
        status, logged = process.end()
        took = time.monotonic() - began
        poll.join(timeout=10)
    assert status == 0, logged
    assert took < 5
    [answer] = answers
    assert (answer.status_code, answer.json()["state"]) == (200, "queued")
    assert [event["event"] for event in events(logged)][-1] == "api_ended"
    store = open_store("sqlite", state_dir=folder / ".batchyard")
    assert store.lead("dispatcher", holder=1, lease_ms=1000), "leadership was handed on at once"
    store.close()


def await_waiter(client: httpx.Client) -> None:
    end = time.monotonic() + 10
    with httpx.Client(base_url=client.base_url) as other:
        while "batchyard_waiters 1.0" not in other.get("/metrics").text:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_what_it_logs_is_one_json_object_a_line(folder: Path) -> None:
    with started(folder) as (process, client):
        client.get("/v1/nothing")
        process.running.send_signal(signal.SIGINT)
        status, logged = process.end()
    assert status == 0
    named = [event["event"] for event in events(logged)]
    assert named[:1] == ["api_starting"]
    assert {"api_ready", "api_ending", "api_ended"} <= set(named)


def test_two_share_a_database_and_one_leads(folder: Path) -> None:
    with started(folder) as (first, one), started(folder) as (_, two):
        roles = [client.get("/readyz").json()["checks"]["role"] for client in (one, two)]
        assert roles == ["leader", "follower"]
        job = one.post("/v1/models/echo/jobs", json={"input": 1}).json()["id"]
        assert two.get(f"/v1/jobs/{job}").json()["state"] == "queued"
        first.running.kill()
        first.end()
        end = time.monotonic() + 20
        while two.get("/readyz").json()["checks"]["role"] != "leader":
            assert time.monotonic() < end
            time.sleep(0.05)


def test_beyond_loopback_it_refuses_without_a_key(folder: Path) -> None:
    status, logged = Process(folder, bind=f"0.0.0.0:{free_port()}").end()
    assert status == 2
    assert "batchyard keys create" in logged


def test_an_address_in_use_is_named(folder: Path) -> None:
    with started(folder) as (_, client):
        status, logged = Process(folder, bind=f"127.0.0.1:{client.base_url.port}").end()
    assert status == 1
    assert "address already in use" in logged
