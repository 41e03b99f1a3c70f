"""Runs the whole system for a benchmark, as a user would: `batchyard up` on a configuration file, nothing tuned."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.cpu import CpuMeter
from tests.checkouts import REPOSITORY, search_path
from tests.servers import postgres_server
from tests.servers.processes import free_port, running, server_folder

NOOP = '[models.noop]\nruntime = "tests.benchmarks.models:NoOp"\n'
DURABILITY = {
    "sqlite": "sqlite wal, synchronous=FULL (claims: NORMAL)",
    "postgres": "postgres, synchronous_commit=on, fsync=on",
}


@dataclass(frozen=True, kw_only=True)
class System:
    """A running batchyard."""

    url: str
    directory: Path
    pid: int
    postgres_pid: int | None
    database: str

    def meter(self, *, client_pids: Sequence[int] = ()) -> CpuMeter:
        """A started meter of everything that takes part, this process as the client."""
        meter = CpuMeter(_role)
        meter.start([os.getpid(), self.pid, *([self.postgres_pid] if self.postgres_pid else []), *client_pids])
        return meter

    @property
    def durability(self) -> str:
        return DURABILITY[self.database]


@contextmanager
def running_system(
    *,
    database: str,
    models: str = NOOP,
    consumers: int = 1,
    most: int = 1,
    device: str = "auto",
    code: Path = REPOSITORY,
) -> Iterator[System]:
    """`batchyard up` in an empty folder, ready to serve; `database` is "sqlite" or "postgres", `code` a checkout.

    It begins with `consumers` and may have up to `most`.

    Without consumers it may start one for the first job, unless its pool is pinned.
    """
    with ExitStack() as stack:
        directory = stack.enter_context(server_folder("bench"))
        server = stack.enter_context(postgres_server()) if database == "postgres" else None
        port = free_port()
        configuration = f'[server]\nbind = "127.0.0.1:{port}"\n'
        configuration += f'[database]\nurl = "{server.url}"\n' if server else ""
        configuration += f"{models}\n[pools.local]\nmodels = {_names(models)}\n"
        configuration += f'device = "{device}"\n'
        configuration += f"min = {consumers}\nmax = {max(most, consumers)}\n"
        (directory / "batchyard.toml").write_text(configuration)
        command = [sys.executable, "-m", "batchyard.cli", "--config", "batchyard.toml", "up"]
        url = f"http://127.0.0.1:{port}"
        environment = {"PYTHONPATH": search_path(code)}
        process = stack.enter_context(
            running(
                command,
                directory=directory,
                ready=lambda: _serves(url, consumers=consumers),
                environment=environment,
                start_seconds=180,
            )
        )
        yield System(
            url=url,
            directory=directory,
            pid=process.pid,
            postgres_pid=server.pid if server else None,
            database=database,
        )


def _names(models: str) -> str:
    return str(
        [line.removeprefix("[models.").removesuffix("]") for line in models.splitlines() if line.startswith("[models.")]
    )


def _serves(url: str, *, consumers: int) -> bool:
    """Ready once the API answers and a consumer, if there are to be any, has loaded its models."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=1) as answer:
            if answer.status != 200:
                return False
        if not consumers:
            return True
        with urllib.request.urlopen(f"{url}/v1/pools", timeout=1) as answer:
            return b'"ready"' in answer.read()
    except (urllib.error.URLError, OSError):
        return False


def _role(command: list[str]) -> str | None:
    """The role of a process by its command line."""
    line = " ".join(command)
    for mark, role in (
        ("valkey", "broker"),
        (" worker", "worker"),
        (" api", "api"),
        (" scaler", "scaler"),
        ("postgres", "database"),
        (" up", "up"),
    ):
        if mark in line:
            return role
    return None
