"""`batchyard api` as a process of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.servers.processes import free_port


class Process:
    """One `batchyard api` and what it logged."""

    def __init__(self, folder: Path, *, bind: str) -> None:
        command = [sys.executable, "-W", "error", "-m", "batchyard.cli", "api", "--bind", bind]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BATCHYARD_")}
        self.running = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)

    def end(self) -> tuple[int, str]:
        """Its exit status and what it logged, once it has ended."""
        _, logged = self.running.communicate(timeout=30)
        return self.running.returncode, logged


@contextmanager
def started(folder: Path) -> Iterator[tuple[Process, httpx.Client]]:
    port = free_port()
    process = Process(folder, bind=f"127.0.0.1:{port}")
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            await_ready(client, process)
            yield process, client
    finally:
        if process.running.poll() is None:
            process.running.kill()
            process.running.communicate()


def await_ready(client: httpx.Client, process: Process) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            assert process.running.poll() is None, process.end()
        assert time.monotonic() < end
        time.sleep(0.02)
