"""A small yard for tests of consumers: a database, a broker, worker processes, and the dispatcher's chores by hand."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from batchyard import results
from batchyard.broker import Broker, queue_name
from batchyard.configuration import load_settings
from batchyard.errors import BrokerDown
from batchyard.jobs import Lane, State, Submission
from batchyard.store import migrate
from batchyard.store.base import JobStore, JobView, ModelConfig, ModelVersion
from batchyard.store.open import database_url, open_store

WAIT_SECONDS = 60.0


class Yard:
    """One configuration with everything that a consumer needs; `tickets=False` leaves publishing to the test."""

    def __init__(
        self, folder: Path, *, models: str, broker_url: str, database: str = "sqlite", extra: str = ""
    ) -> None:
        self.folder = folder
        self.config = folder / "batchyard.toml"
        self.config.write_text(
            f'[database]\nurl = "{database}"\n[broker]\nurl = "{broker_url}"\n'
            f"[queues]\nlease_seconds = 3.0\nretry_base_seconds = 0.1\n{models}\n{extra}\n"
        )
        self.settings = load_settings(self.config)
        self.settings.state_dir.mkdir(parents=True, exist_ok=True)
        migrate.upgrade(database_url(database, state_dir=self.settings.state_dir))
        self.store: JobStore = open_store(database, state_dir=self.settings.state_dir)
        self.broker = Broker(broker_url)
        self.versions: dict[str, ModelVersion] = {
            version.name: version
            for version in self.store.sync_models(
                [
                    ModelConfig(
                        model=m.name, version=m.version, runtime=m.runtime, weight=m.weight, default_lane=m.lane
                    )
                    for m in self.settings.models
                ]
            )
        }
        self.workers: list[subprocess.Popen[bytes]] = []

    # --- jobs ---

    def submit(
        self, model: str, inputs: Sequence[Any], *, lane: Lane = Lane.FIRM, tickets: bool = True, **fields: Any
    ) -> list[int]:
        """Commit jobs, and ticket them."""
        queue_id = self.versions[model].queue_ids[lane]
        bodies = [msgspec.json.encode(value) for value in inputs]
        submission = Submission(
            tenant_id=1, queue_id=queue_id, inputs=bodies, costs=[len(body) for body in bodies], **fields
        )
        accepted = self.store.submit([submission])[0]
        if isinstance(accepted, Exception):
            raise accepted
        ids = list(accepted.ids)
        if tickets:
            self.ticket(queue_id, ids)
        return ids

    def ticket(self, queue_id: int, ids: Sequence[int]) -> None:
        with suppress(BrokerDown):
            self.broker.publish(self.broker_name(queue_id), queue_id, ids)

    def broker_name(self, queue_id: int) -> str:
        for version in self.versions.values():
            for lane, known in version.queue_ids.items():
                if known == queue_id:
                    return queue_name(version.model, version.version, lane)
        raise LookupError(queue_id)

    def view(self, ids: Sequence[int]) -> list[JobView]:
        views = [
            view
            for start in range(0, len(ids), 1000)
            for view in self.store.get_jobs(ids[start : start + 1000], tenant_id=1)
        ]
        return sorted(views, key=lambda view: ids.index(view.id)) if len(ids) < 5000 else views

    def states(self, ids: Sequence[int]) -> dict[State, int]:
        counts: dict[State, int] = {}
        for view in self.view(ids):
            counts[view.state] = counts.get(view.state, 0) + 1
        return counts

    def chores(self) -> None:
        """What the leader would do: retries due, dead consumers' jobs."""
        for moved in (self.store.promote_due(limit=1000), self.store.reap(limit=1000)):
            for queue_id, ids in moved.items():
                self.ticket(queue_id, ids)

    def finish(self, ids: Sequence[int], *, timeout: float = WAIT_SECONDS) -> list[JobView]:
        """Wait until all are terminal, doing the leader's chores meanwhile."""

        def finished() -> bool:
            self.chores()
            return len(self.store.finished_among(ids)) == len(ids)

        until(finished, timeout=timeout, yard=self)
        return self.view(ids)

    # --- processes ---

    def start(self, pool: str = "local", *, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a worker process; see `ready`."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "batchyard.cli", "--config", str(self.config), "worker", "--pool", pool],
                cwd=self.folder,
                env={**os.environ, "OMP_NUM_THREADS": "2", **(env or {})},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.workers.append(process)
        return process

    @property
    def log(self) -> Path:
        return self.folder / "worker.log"

    def ready(self, count: int = 1) -> None:
        """Wait until so many consumers are ready."""
        until(
            lambda: sum(info.state == "ready" for info in self.store.consumers()) >= count,
            timeout=WAIT_SECONDS,
            yard=self,
        )

    def close(self) -> None:
        for process in self.workers:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.broker.close()
        self.store.close()


@contextmanager
def yard(folder: Path, **arguments: Any) -> Iterator[Yard]:
    made = Yard(folder, **arguments)
    try:
        yield made
    finally:
        made.close()


def until(condition: Callable[[], Any], *, timeout: float = WAIT_SECONDS, yard: Yard | None = None) -> None:
    """Poll until the condition holds; fails with the worker's log."""
    give_up = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > give_up:
            log = yard.log.read_text()[-6000:] if yard is not None and yard.log.exists() else ""
            raise AssertionError(f"not within {timeout:g} s\n{log}")
        time.sleep(0.02)


def result(view: JobView) -> Any:
    """The decoded result of a finished job, or its error."""
    if view.error is not None:
        return view.error
    assert view.result_format is not None, view
    assert view.result_body is not None, view
    return results.decode(view.result_format, view.result_body)
