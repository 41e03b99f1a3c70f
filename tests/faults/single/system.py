"""A real API process and real consumers over one database and one broker, for a fault to happen to."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

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
