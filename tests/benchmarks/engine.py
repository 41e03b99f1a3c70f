"""What the consumer's engine does beside computing: two models on one device, leaving in order, starting."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from batchyard import Client
from tests.benchmarks.minilm import MODEL, figures, model_folder
from tests.benchmarks.report import Wanted
from tests.benchmarks.system import System, running_system
from tests.servers.processes import server_folder

TWO = MODEL.replace("minilm]", "often]") + MODEL.replace("minilm]", "rare]")
WARM_JOBS = 256
RARE_JOBS = 200
RARE_PART = 0.8
"""Of the time that the frequent model's jobs take by themselves, the rarer one's arrive in."""
LOGGED = '[models.logged]\nruntime = "tests.benchmarks.models:Logged"\nbatch_budget = 16\n'
LOGGED_JOBS = 200


# --- two models on one device ---


def mixed(*, inputs: Sequence[str], device: str) -> Iterator[Wanted]:
    """The frequent model's texts at once and the rarer one's one by one meanwhile, against one after the other. Waits
    are in the frequent model's batches."""
    often, rare = inputs[:-RARE_JOBS], inputs[-RARE_JOBS:]
    with (
        running_system(database="sqlite", models=TWO, device=device) as system,
        Client(system.url, timeout=300) as client,
    ):
        texts = {"often": often, "rare": rare}
        for name in texts:
            _map(client, name, [f"warm up number {n}" for n in range(WARM_JOBS)])
        # Both are in memory in either order.
        apart = [
            sum(_map(client, name, texts[name]) for name in order) for order in (("often", "rare"), ("rare", "often"))
        ]
        often_seconds = min(apart) * len(often) / len(inputs)
        done = WARM_JOBS + 2 * len(often)
        before = figures(system.url, finished=done, model="often@")
        started = time.perf_counter()
        with ThreadPoolExecutor(2) as pool:
            bulk = pool.submit(_map, client, "often", often)
            waits = pool.submit(_one_by_one, system, rare, seconds=RARE_PART * often_seconds).result()
            bulk.result()
        together = time.perf_counter() - started
        after = figures(system.url, finished=done + len(often), model="often@")
    batch_seconds = (after["batch_seconds"] - before["batch_seconds"]) / (after["batches"] - before["batches"])
    yield Wanted(what="mixed: throughput over one after the other", measured=min(apart) / together, at_least=1.0)
    p99 = sorted(waits)[int(0.99 * (len(waits) - 1))]
    yield Wanted(what="mixed: the rarer model's p99 wait", measured=p99 / batch_seconds, at_most=2.0, unit="batches")


def _map(client: Client, model: str, texts: Sequence[str]) -> float:
    """Seconds from the first submit to the last result."""
    started = time.perf_counter()
    if sum(1 for _ in client.map(model, texts)) != len(texts):
        raise RuntimeError("not every text has its result")
    return time.perf_counter() - started


def _one_by_one(system: System, texts: Sequence[str], *, seconds: float) -> list[float]:
    """Submitted at even distances; seconds that each waited, from its submission until its result less its own pass."""
    with Client(system.url, timeout=120) as client, ThreadPoolExecutor(32) as pool:

        def one(text: str) -> float:
            started = time.perf_counter()
            job = client.submit("rare", text)
            job.result(timeout=120)
            passed = time.perf_counter() - started
            return passed - (job.data.device_seconds or 0.0)

        began = time.perf_counter()
        pending = []
        for number, text in enumerate(texts):
            time.sleep(max(0.0, began + number * seconds / len(texts) - time.perf_counter()))
            pending.append(pool.submit(one, text))
        return [one.result() for one in pending]


# --- leaving ---


def drain() -> Iterator[Wanted]:
    """SIGTERM to a consumer with batches on its device; what it computed is counted by job."""
    with server_folder("counted") as folder:
        log = folder / "computed"
        os.environ["BENCH_COMPUTED"] = str(log)
        try:
            with running_system(database="sqlite", models=LOGGED) as system, Client(system.url, timeout=120) as client:
                seconds, succeeded, values = _terminated(system, client, log)
        finally:
            del os.environ["BENCH_COMPUTED"]
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    longest = max(line["seconds"] for line in lines)
    times = Counter(number for line in lines for number in line["numbers"])
    if sorted(values) != list(range(LOGGED_JOBS)):
        raise RuntimeError("not every job has its own result")
    yield Wanted(
        what="drain: SIGTERM to exit beyond the longest batch", measured=seconds - longest, at_most=1.0, unit="s"
    )
    again = sum(times[number] > 1 for number in succeeded)
    yield Wanted(what="drain: jobs computed again that were persisted", measured=again, at_most=0, unit="jobs")
    more = sum(times.values()) - LOGGED_JOBS
    yield Wanted(what="drain: jobs computed again of all", measured=more, at_most=0, unit="jobs")


def _terminated(system: System, client: Client, log: Path) -> tuple[float, list[int], list[int]]:
    """Seconds from the signal to the exit, the jobs that had succeeded by then, and all results in the end."""
    succeeded: list[int] = []
    values: list[int] = []
    enough = threading.Event()

    def read() -> None:
        for result in client.map("logged", range(LOGGED_JOBS)):
            values.append(result.value)
            if len(values) > LOGGED_JOBS // 8:
                enough.set()

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        if not enough.wait(60):
            raise RuntimeError("the consumer did not begin")
        worker = next(
            child for child in psutil.Process(system.pid).children(recursive=True) if "worker" in child.cmdline()
        )
        started = time.perf_counter()
        worker.send_signal(signal.SIGTERM)
        psutil.wait_procs([worker], timeout=60)
        seconds = time.perf_counter() - started
        succeeded = list(values)
        reading.result(timeout=120)
    return seconds, succeeded, values


# --- starting ---


@dataclass(frozen=True, kw_only=True)
class Starts:
    """Seconds from the start of a process to its first embedding."""

    alone: float
    system: float


ALONE = """
import sys
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device=sys.argv[2], local_files_only=True)
model.encode(["a first text"])
"""


def start(*, rounds: int, device: str) -> Iterator[Wanted]:
    """A consumer's process, from nothing to the first result of a job that waits, against the library by itself."""
    starts = [Starts(alone=_alone(device), system=_first_result(device)) for _ in range(rounds)]
    beyond = statistics.median(one.system for one in starts) - statistics.median(one.alone for one in starts)
    yield Wanted(
        what="start: process start to first result, beyond the library's", measured=beyond, at_most=2.0, unit="s"
    )


def _alone(device: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", ALONE, str(model_folder()), device], check=True, capture_output=True)
    return time.perf_counter() - started


def _first_result(device: str) -> float:
    """A consumer of its own beside a system that has none."""
    with (
        running_system(database="sqlite", models=MODEL, consumers=0, device=device) as system,
        Client(system.url, timeout=300) as client,
    ):
        client.pin_pool("local", replicas=0)
        job = client.submit("minilm", "a first text")
        command = [sys.executable, "-m", "batchyard.cli", "--config", "batchyard.toml", "worker", "--pool", "local"]
        started = time.perf_counter()
        with (system.directory / "worker.log").open("wb") as log:
            worker = subprocess.Popen(command, cwd=system.directory, stdout=log, stderr=log, stdin=subprocess.PIPE)
        try:
            job.result(timeout=300)
            return time.perf_counter() - started
        finally:
            worker.terminate()
            worker.communicate(timeout=60)
