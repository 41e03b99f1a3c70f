"""A `batchyard up` as a user starts it, for tests of the SDK and of the command."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

CONFIG = """
log_level = "info"
[queues]
lease_seconds = 3
retry_base_seconds = 0.1
[models.moody]
runtime = "batchyard_consumers.samples:Moody"
lane = "tolerant"
[models.lengths]
runtime = "batchyard_consumers.samples:Lengths"
[pools.local]
models = ["moody", "lengths"]
device = "cpu"
min = 1
max = 1
drain_seconds = 3
"""

UP_SECONDS = 60.0


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "batchyard.cli", *arguments]


PROGRAM = tuple(command())


def environment(**more: str) -> dict[str, str]:
    """No setting of the developer's own shell."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BATCHYARD_")}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


class Up:
    """One run of `batchyard up`; by default of the command in the checkout."""

    def __init__(
        self,
        folder: Path,
        *,
        config: str = CONFIG,
        program: Sequence[str | Path] = PROGRAM,
        variables: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self._arguments = tuple(arguments)
        self._program = tuple(program)
        self._variables = environment() if variables is None else dict(variables)
        self.config = folder / "batchyard.toml"
        self.config.write_text(config)
        self.lines: list[str] = []
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        [line] = [line for line in self.lines if line.startswith("batchyard is up at ")]
        return line.split()[4]

    def start(self) -> None:
        self.lines.clear()
        self._process = subprocess.Popen(
            [*self._program, "up", "--bind", "127.0.0.1:0", *self._arguments],
            cwd=self.folder,
            env=self._variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        if not eventually(lambda: any(line.startswith("Ctrl-C") for line in self.lines), seconds=UP_SECONDS):
            raise AssertionError("batchyard up did not come up:\n" + "\n".join(self.lines))

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal and wait; returns the exit status."""
        self.send(number)
        assert self._process is not None
        status = self._process.wait(60)
        self._reader.join(10)
        return status

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)
        self._reader.join(10)

    def children(self, *words: str) -> list[psutil.Process]:
        """Its processes, at any depth, whose command line has these words."""
        assert self._process is not None
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            try:
                if set(words) <= set(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def run(self, *arguments: str, text: str | None = None, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Another command of a user in the same folder."""
        return subprocess.run(
            [*self._program, *arguments],
            cwd=self.folder,
            env={**self._variables, "BATCHYARD_URL": self.url},
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.lines.append(line.rstrip("\n"))


@contextmanager
def running_up(
    folder: Path,
    *,
    config: str = CONFIG,
    program: Sequence[str | Path] = PROGRAM,
    variables: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
) -> Iterator[Up]:
    up = Up(folder, config=config, program=program, variables=variables, arguments=arguments)
    up.start()
    try:
        yield up
    finally:
        if up._process is not None and up._process.poll() is None:
            up.stop()


def eventually(condition: Callable[[], bool], *, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()
