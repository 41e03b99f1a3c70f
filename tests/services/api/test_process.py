"""`batchyard api` as a process: it comes up, refuses an open door, and ends in order."""

import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from batchyard.store import migrate
from batchyard.store.open import database_url, open_store
from tests.servers.processes import free_port
from tests.services.api.process import Process, started

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
