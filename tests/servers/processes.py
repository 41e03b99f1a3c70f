"""Starts a server's process in a folder of its own and ends it."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.02
STOP_SECONDS = 20.0
LOG_TAIL_CHARACTERS = 3000


class ServerUnavailable(Exception):
    """The server is not installed here; the message says what to install."""


class ServerFailed(Exception):
    """The server is installed and did not come up; the message ends with its log."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server: its address, its folder, and the process that a fault test may signal."""

    url: str
    directory: Path
    pid: int


@contextmanager
def server_folder(name: str) -> Iterator[Path]:
    """An empty folder with a path short enough for a Unix socket in it; removed at the end."""
    directory = Path(tempfile.mkdtemp(prefix=f"by-{name}-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def running(
    command: Sequence[str | Path],
    *,
    directory: Path,
    ready: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
    stop_signal: signal.Signals = signal.SIGTERM,
    start_seconds: float = 60.0,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` until the block ends; enters once `ready()`, which must not raise, is true.

    The process leads its own group, so that an interrupt at the terminal reaches the tests first and they stop it.
    """
    log = directory / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=user,
            group=user and _group_of(user),
            extra_groups=[] if user else None,
        )
    try:
        _await(ready, process, log, start_seconds)
        yield process
    finally:
        _stop(process, stop_signal)


def free_port(*, below: int = 65536) -> int:
    """A loopback TCP port that nothing listens on now."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < below:
            return port


def _group_of(user: str) -> int:
    import pwd

    return pwd.getpwnam(user).pw_gid


def _await(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    give_up = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None:
            what = f"ended with status {process.returncode}"
        elif time.monotonic() > give_up:
            what = f"was not ready after {seconds:.0f} s"
        else:
            time.sleep(POLL_SECONDS)
            continue
        tail = log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:]
        raise ServerFailed(f"{process.args!r} {what}; its log ends:\n{tail}")


def _stop(process: subprocess.Popen[bytes], stop_signal: signal.Signals) -> None:
    """Ask, wait, then end the whole group. A paused process (SIGSTOP) is woken so that it can answer."""
    for asked in (stop_signal, signal.SIGCONT):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, asked)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
