"""One job a request, 64 in flight, from a compiled load generator; every job durable before its 202."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

from batchyard import Client
from tests.benchmarks.report import Measurement
from tests.benchmarks.system import System, running_system
from tests.checkouts import REPOSITORY

SCRIPT = Path(__file__).with_name("single.lua")


def measure(*, database: str, seconds: int, code: Path = REPOSITORY) -> Measurement:
    """One round: accepted jobs a second, latency of the 202, and seconds from the load's end to the last job's."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise RuntimeError("this row needs wrk: install Debian's package wrk")
    with running_system(database=database, code=code) as system:
        _load(wrk, system, seconds=2)
        _drained(system)
        meter = system.meter()
        said = _load(wrk, system, seconds=seconds)
        ended = time.perf_counter()
        _drained(system)
        drain_seconds = time.perf_counter() - ended
        cpu = meter.stop()
    if said["not_2xx"] or said["socket_errors"]:
        raise RuntimeError(f"not every request was accepted: {said}")
    return Measurement(
        jobs=int(said["requests"]),
        seconds=said["seconds"],
        cpu_seconds=cpu,
        durability=system.durability,
        extra={"p50_ms": said["p50_ms"], "p99_ms": said["p99_ms"], "drain_seconds": drain_seconds},
    )


def _load(wrk: str, system: System, *, seconds: int) -> dict[str, float]:
    command = [
        wrk,
        "--threads",
        "1",
        "--connections",
        "64",
        "--duration",
        f"{seconds}s",
        "--timeout",
        "10s",
        "--script",
        str(SCRIPT),
        system.url,
    ]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    said: dict[str, float] = json.loads(next(line for line in output.splitlines() if line.startswith('{"requests"')))
    return said


def _drained(system: System, *, timeout_seconds: float = 120.0) -> None:
    """Wait until no job is queued, waiting or running."""
    deadline = time.monotonic() + timeout_seconds
    with Client(system.url) as client:
        while any(
            queue.queued + queue.waiting + queue.running
            for version in client.models()[0].versions
            for queue in version.queues
        ):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the queue did not drain within {timeout_seconds:.0f} s")
            time.sleep(0.05)
