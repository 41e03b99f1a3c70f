"""How soon after a burst `batchyard up` starts one more consumer beside one that is warm."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psutil

from batchyard import Client
from tests.benchmarks.models import make_input
from tests.benchmarks.system import System, running_system

SLOW = """
[models.slow]
runtime = "tests.benchmarks.models:Slow"
batch_budget = 1
"""
JOBS = 400
"""Of 50 ms each: 20 s of one consumer's time, which is worth a start."""
LOOK_SECONDS = 0.02
PATIENCE_SECONDS = 30.0


def measure(*, rounds: int) -> Iterator[float]:
    """Seconds from submitting the burst until the process of the second consumer is there."""
    for _ in range(rounds):
        with running_system(database="sqlite", models=SLOW, device="cpu", most=2) as system:
            yield _seconds_until_two(system)


def _seconds_until_two(system: System) -> float:
    with Client(url=system.url) as client:
        client.submit("slow", make_input(0)).result()
        began = time.monotonic()
        client.submit_many("slow", [make_input(index) for index in range(JOBS)])
        while _consumers(system.pid) < 2:
            if time.monotonic() - began > PATIENCE_SECONDS:
                raise TimeoutError(f"no second consumer within {PATIENCE_SECONDS:g} s of the burst")
            time.sleep(LOOK_SECONDS)
        return time.monotonic() - began


def _consumers(pid: int) -> int:
    found = 0
    for process in psutil.Process(pid).children(recursive=True):
        try:
            found += "worker" in process.cmdline()
        except psutil.NoSuchProcess:
            continue
    return found
