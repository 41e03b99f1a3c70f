"""An idle system: from submitting one job to holding its result, by long poll."""

from __future__ import annotations

import statistics
import time

import httpx

from tests.benchmarks.models import expected, make_input
from tests.benchmarks.report import Measurement
from tests.benchmarks.system import running_system


def measure(*, database: str, jobs: int) -> Measurement:
    """One round of `jobs` jobs, one after the other, over one kept connection."""
    with running_system(database=database) as system, httpx.Client(base_url=system.url, timeout=30) as http:
        for index in range(50):
            _one(http, index)
        times = []
        start = time.perf_counter()
        for index in range(jobs):
            before = time.perf_counter()
            _one(http, index)
            times.append((time.perf_counter() - before) * 1e3)
        seconds = time.perf_counter() - start
    return Measurement(
        jobs=jobs,
        seconds=seconds,
        durability=system.durability,
        extra={"p50_ms": statistics.median(times), "p99_ms": statistics.quantiles(times, n=100)[98]},
    )


def _one(http: httpx.Client, index: int) -> None:
    submitted = http.post("/v1/models/noop/jobs", json={"input": make_input(index)})
    submitted.raise_for_status()
    answer = http.get(submitted.headers["Location"], params={"wait": "20"}).json()
    if answer["state"] != "succeeded" or answer["result"] != expected(index):
        raise RuntimeError(f"job {index} came back wrong: {answer}")
