"""How long one round of decisions takes, and `/metrics`, over many queues and a deep backlog.

The round is the whole of it: what the scaler reads from the database, the policy, and the decisions written down.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
from prometheus_client import Histogram

from batchyard.configuration import load_settings
from batchyard.exposition import Snapshot, snapshot
from batchyard.jobs import Lane, Submission
from batchyard.settings import Settings
from batchyard.store import migrate
from batchyard.store.base import JobStore, ModelConfig
from batchyard.store.open import open_store
from batchyard.telemetry import ConsumerMetrics, new_registry
from batchyard_scaler.sizing import Sizer
from tests.checkouts import REPOSITORY
from tests.servers.processes import free_port, running, server_folder

MODELS_A_POOL = 10
DEADLINES = 5
"""Of each queue, 15 minutes apart."""
CONSUMERS = 50
TIMES = 30


class Timing(NamedTuple):
    """Of one call, over several."""

    median_ms: float
    cpu_ms: float
    """Mean, of the process that does the work, whatever else it did meanwhile."""


def measure(*, queues: int, jobs: int) -> Iterator[tuple[str, Timing]]:
    """By what was measured: on SQLite, with one API process and its leader."""
    with server_folder("deciding") as folder:
        port = free_port()
        _configure(folder, port=port, queues=queues)
        settings = load_settings(folder / "batchyard.toml", folder / "state")
        migrate.upgrade(settings.database.url)
        store = open_store(settings.database.url, state_dir=settings.state_dir)
        try:
            _fill(store, settings, jobs=jobs)
            sizer = Sizer(settings, store=store)
            asked = f"{queues} queues, {jobs:,} queued jobs"
            yield (
                f"one round of decisions, {asked}",
                _times(lambda: sizer.round(lambda pool, live: len(live)), pid=os.getpid()),
            )
            command = [sys.executable, "-m", "batchyard.cli", "--config", "batchyard.toml", "--state", "state", "api"]
            url = f"http://127.0.0.1:{port}"
            environment = {"PYTHONPATH": str(REPOSITORY)}
            with (
                running(command, directory=folder, ready=lambda: _answers(url), environment=environment) as api,
                httpx.Client(base_url=url, timeout=60) as http,
            ):
                yield f"GET /metrics, {asked}", _times(lambda: http.get("/metrics").raise_for_status(), pid=api.pid)
                _add_consumers(store)
                took = _times(lambda: http.get("/metrics").raise_for_status(), pid=api.pid)
                yield f"GET /metrics, {asked}, {CONSUMERS} consumers", took
        finally:
            store.close()


def _configure(folder: Path, *, port: int, queues: int) -> None:
    # A model has a queue for each lane.
    names = [f"model-{number:03d}" for number in range(queues // len(Lane))]
    lines = [
        "[database]",
        f'url = "sqlite:///{folder}/jobs.db"',
        "[server]",
        f'bind = "127.0.0.1:{port}"',
        "[broker]",
        f'url = "redis://127.0.0.1:{free_port()}"',
    ]
    for name in names:
        lines += [f"[models.{name}]", 'runtime = "tests.benchmarks.models:NoOp"']
    for first in range(0, len(names), MODELS_A_POOL):
        lines += [f"[pools.pool-{first}]", f"models = {names[first : first + MODELS_A_POOL]}", "max = 50"]
    (folder / "batchyard.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _fill(store: JobStore, settings: Settings, *, jobs: int) -> None:
    wanted = [ModelConfig(model=model.name, version=model.version, runtime=model.runtime) for model in settings.models]
    versions = store.sync_models(wanted)
    count = jobs // (len(versions) * len(Lane) * DEADLINES)
    now_ms = store.now_ms()
    for version in versions:
        store.submit(
            [
                Submission(
                    tenant_id=1,
                    queue_id=queue_id,
                    inputs=[b'"text"'] * count,
                    costs=[100] * count,
                    deadline_ms=now_ms + (step + 1) * 900_000,
                )
                for queue_id in version.queue_ids.values()
                for step in range(DEADLINES)
            ]
        )


def _add_consumers(store: JobStore) -> None:
    """Each with all that it counts of one model."""
    for number, version in zip(range(CONSUMERS), store.models(), strict=False):
        counted = _counted(version.name)
        owner = store.register_consumer(
            pool=f"pool-{number // MODELS_A_POOL * MODELS_A_POOL}",
            host="host",
            pid=number,
            device="cpu",
            capacity="on_demand",
            queue_ids=list(version.queue_ids.values()),
            lease_ms=600_000,
        )
        store.renew(owner, lease_ms=600_000, state="ready", stats={"samples": counted})


def _counted(model: str) -> Snapshot:
    registry = new_registry()
    metrics = ConsumerMetrics(registry)
    for histogram in vars(metrics).values():
        if isinstance(histogram, Histogram):
            (histogram.labels(model) if histogram._labelnames else histogram).observe(0.02)
    return snapshot(registry)


def _times(call: Callable[[], object], *, pid: int) -> Timing:
    call()
    process, seconds = psutil.Process(pid), []
    cpu_before = sum(process.cpu_times()[:2])
    for _ in range(TIMES):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    cpu = sum(process.cpu_times()[:2]) - cpu_before
    return Timing(median_ms=statistics.median(seconds) * 1000, cpu_ms=cpu * 1000 / TIMES)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=1).status_code == 200
    except httpx.HTTPError:
        return False
