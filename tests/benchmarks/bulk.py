"""Bulk submission over HTTP: from the first submit to the last result fetched, every result compared with its input."""

from __future__ import annotations

import time
from pathlib import Path

from batchyard import Client
from tests.benchmarks.models import expected, make_input
from tests.benchmarks.report import Measurement
from tests.benchmarks.system import running_system
from tests.checkouts import REPOSITORY


def measure(*, database: str, jobs: int, code: Path = REPOSITORY) -> Measurement:
    """One round on a system started for it, after a warm-up of 20,000 jobs."""
    with running_system(database=database, code=code) as system, Client(system.url) as client:
        _run(client, 20_000)
        meter = system.meter()
        start = time.perf_counter()
        _run(client, jobs)
        seconds = time.perf_counter() - start
        return Measurement(jobs=jobs, seconds=seconds, cpu_seconds=meter.stop(), durability=system.durability)


def _run(client: Client, jobs: int) -> None:
    seen = bytearray(jobs)
    wrong = 0
    for result in client.map("noop", (make_input(n) for n in range(jobs))):
        seen[result.index] += 1
        wrong += result.value != expected(result.index)
    if wrong or seen.count(1) != jobs:
        raise RuntimeError(
            f"{wrong} results do not belong to their input; {jobs - seen.count(1)} jobs have not exactly one"
        )
