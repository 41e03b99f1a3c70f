"""A real API process and real consumers over one database and one broker, for a fault to happen to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from batchyard.jobs import Lane
from tests.faults.single.factors import LEASE_SECONDS, STATED_LEASE_SECONDS, shortened
from tests.services.api.process import Process, started
from tests.services.consumers.yard import Yard, until, yard
from tests.services.store.yard import check_ledgers

NOOP = """
[models.noop]
runtime = "batchyard_consumers.samples:NoOp"
[pools.local]
models = ["noop"]
drain_seconds = 5
"""

PATIENCE_SECONDS = 60.0
BLOCKED_SECONDS = 1.0
"""The longest that anything but the one call to a server that hangs may be held up."""


class System:
    """`place` holds the configuration and the consumers; `client` speaks to the API process."""

    def __init__(self, place: Yard, api: Process, client: httpx.Client) -> None:
        self.place = place
        self.api = api
        self.client = client

    def submit(self, *inputs: Any, model: str = "noop") -> httpx.Response:
        return self.client.post(f"/v1/models/{model}/jobs", json={"inputs": inputs})

    def accepted(self, *inputs: Any, model: str = "noop") -> list[int]:
        """The ids of jobs that must be accepted."""
        answer = self.submit(*inputs, model=model)
        assert answer.status_code == 202, answer.text
        return [int(job_id, 16) for job_id in answer.json()["ids"]]

    def finish(self, ids: Sequence[int], *, timeout: float = 60) -> None:
        """Wait until all have ended; the API's dispatcher does the leader's chores."""
        until(lambda: len(self.place.store.finished_among(ids)) == len(ids), timeout=timeout, yard=self.place)

    def settle(self) -> None:
        """Wait until every job has ended, also those that nobody kept the ids of, and compare the ledgers."""
        store = self.place.store
        until(lambda: not any(row.jobs for row in store.recount() if not row.state.is_terminal), yard=self.place)
        check_ledgers(store)

    def takes_tickets(self) -> bool:
        """Whether a ticket for nothing is taken off the queue."""
        place = self.place
        queue_id = place.versions["noop@1"].queue_ids[Lane.FIRM]
        place.ticket(queue_id, [1])
        return place.broker.is_up and place.broker.depth(place.broker_name(queue_id)) == 0

    def submit_under(self, keys: Sequence[str], *, model: str = "noop") -> list[int]:
        """A job under each key, all at once and each until it is answered; returns their ids."""

        def insist(key: str) -> int:
            give_up = time.monotonic() + PATIENCE_SECONDS
            while True:
                try:
                    headers = {"Idempotency-Key": key}
                    body = {"input": {"do": "echo", "value": key}}
                    answer = self.client.post(f"/v1/models/{model}/jobs", json=body, headers=headers, timeout=3)
                    if answer.status_code == 202:
                        return int(answer.json()["id"], 16)
                    assert answer.status_code == 503, answer.text
                    assert int(answer.headers["Retry-After"]) >= 1
                except httpx.TimeoutException:
                    pass
                assert time.monotonic() < give_up, "no answer"

        with ThreadPoolExecutor(len(keys)) as threads:
            return list(threads.map(insist, keys))

    @contextmanager
    def stays_alive(self) -> Iterator[None]:
        """All the while `/healthz` is answered within `BLOCKED_SECONDS`: nothing holds the event loop up."""
        slowest, stop = [0.0], threading.Event()

        def ask() -> None:
            with httpx.Client(base_url=self.client.base_url, timeout=30) as client:
                while not stop.wait(0.05):
                    began = time.monotonic()
                    client.get("/healthz").raise_for_status()
                    slowest.append(time.monotonic() - began)

        with ThreadPoolExecutor(1) as thread:
            asking = thread.submit(ask)
            try:
                yield
            finally:
                stop.set()
            asking.result()
        print(f"slowest of {len(slowest) - 1} answers of /healthz: {max(slowest):.3f} s")
        assert max(slowest) < BLOCKED_SECONDS

    def slowest_answers(self, *, seconds: float) -> tuple[list[int], float]:
        """Submit and ask without a pause; returns the ids accepted and the longest that any answer took."""
        ids: list[int] = []
        slowest = 0.0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.monotonic()
            ids += self.accepted(len(ids))
            submitted = time.monotonic()
            assert self.client.get(f"/v1/jobs/{ids[-1]:016x}").status_code == 200
            slowest = max(slowest, submitted - began, time.monotonic() - submitted)
        return ids, slowest


@contextmanager
def system(folder: Path, *, consumers: int = 1, models: str = NOOP, **servers: str) -> Iterator[System]:
    """Running, with its consumers ready; `servers` are `broker_url` and `database`."""
    shortened("lease", LEASE_SECONDS, stated=STATED_LEASE_SECONDS)
    with yard(folder, models=models, **servers) as place, started(folder) as (api, client):
        for _ in range(consumers):
            place.start()
        place.ready(consumers)
        yield System(place, api, client)
