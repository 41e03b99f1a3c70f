"""The processes of a run: started, killed, and started again when they end, as a supervisor would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.faults.history import Ended, History

REPOSITORY = Path(__file__).parents[2]
LOOK_SECONDS = 0.02
RESTART_SECONDS = 0.1
STOP_SECONDS = 15.0


def now_ms() -> int:
    """The time as all histories tell it."""
    return time.time_ns() // 1_000_000


class Member:
    """One process of a role, and those that follow it. `keep` belongs to the keeper's thread, the rest is anybody's."""

    def __init__(
        self,
        role: str,
        *arguments: str,
        folder: Path,
        variables: Mapping[str, str],
        history: History,
        port: int = 0,
    ) -> None:
        self.role = role
        self.port = port
        self._arguments = arguments
        self._folder = folder
        self._variables = dict(variables)
        self._history = history
        self._process: subprocess.Popen[bytes] | None = None
        self._start_at = time.monotonic()
        self._is_wanted = True

    @property
    def pid(self) -> int | None:
        """None while it is down."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def send(self, number: signal.Signals, *, stay_away_seconds: float = RESTART_SECONDS) -> int | None:
        """Send a signal; after an end it is started again this much later. Returns the process id, None while down."""
        pid = self.pid
        self._start_at = time.monotonic() + stay_away_seconds
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return pid

    def keep(self) -> None:
        """Start it where it is down; note that it has ended."""
        if self._process is not None and self._process.poll() is not None:
            self._history.add([Ended(at_ms=now_ms(), pid=self._process.pid, role=self.role)])
            self._process = None
            self._start_at = max(self._start_at, time.monotonic() + RESTART_SECONDS)
        if self._process is None and self._is_wanted and time.monotonic() >= self._start_at:
            with (self._folder / f"{self.role}.log").open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "batchyard.cli", *self._arguments],
                    cwd=self._folder,
                    env=self._variables,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )

    def end(self) -> None:
        """For good; `finish` waits for it."""
        self._is_wanted = False
        for number in (signal.SIGCONT, signal.SIGTERM):
            self.send(number)

    def finish(self) -> None:
        process = self._process
        if process is None:
            return
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def kept(members: Sequence[Member]) -> Iterator[None]:
    """Keep all of them running until the block ends; then end them in order."""
    stopped = threading.Event()

    def keep() -> None:
        while not stopped.wait(LOOK_SECONDS):
            for member in members:
                member.keep()

    thread = threading.Thread(target=keep, name="faults-keeper", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(10)
        for member in members:
            member.end()
        for member in members:
            member.finish()


def variables() -> dict[str, str]:
    """The environment of a member: nothing of the developer's own settings, and the suite's model within reach."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    given = {name: value for name, value in os.environ.items() if not name.startswith("BATCHYARD_")}
    return {**given, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
