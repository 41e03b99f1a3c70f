"""Child processes that are looked after: started, restarted with back-off when they die, ended in order.

Used by `up` for the API and the scaler, and by the local scaler for consumers. A child runs in a session of its own,
so that Ctrl-C at the terminal reaches the one who looks after it and nobody else.

A child lives no longer than its parent: its standard input is a pipe whose other end only the parent holds, so that it
reads the end of it the moment the parent is gone, however that happened, be it before the child looked for the first
time. Linux's PR_SET_PDEATHSIG would do the same for one system only, and for the thread that forked rather than for the
process; asking for the parent's id again and again does not tell a dead parent from a living process 1.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

CHILD = "BATCHYARD_CHILD"
"""Set for a child: its standard input tells whether its parent lives."""

ORPHAN_SECONDS = 2.0
"""What a child whose parent is gone has for ending in order, and again for ending at once."""
HURRY_SECONDS = 1.0
"""What children have for ending at once, where they were asked again."""
LOG_BYTES = 8 * 1024 * 1024
"""A log that is longer when its process starts is set aside as NAME.old."""


class Backoff:
    """How long to wait before starting again what has died. Pure."""

    def __init__(
        self, *, first_seconds: float = 1.0, longest_seconds: float = 30.0, healthy_seconds: float = 30.0
    ) -> None:
        self._first = first_seconds
        self._longest = longest_seconds
        self._healthy = healthy_seconds
        self.deaths = 0
        """In a row, without a healthy run between."""

    def died(self, *, ran_seconds: float) -> float:
        """Seconds to wait after a run that lasted so long."""
        self.deaths = 1 if ran_seconds >= self._healthy else self.deaths + 1
        return min(self._longest, self._first * 2.0 ** (self.deaths - 1))


class Child:
    """One child process with its log. Owned by one thread; `on_line` is called on another."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        on_line: Callable[[bytes], None] | None = None,
        backoff: Backoff | None = None,
        defaults: Mapping[str, str] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """`defaults`: environment variables for the child where its parent has none; `variables`: in any case."""
        self.name = name
        self.log = log
        self._command = list(command)
        self._on_line = on_line
        self._backoff = backoff or Backoff()
        self._defaults = dict(defaults or {})
        self._variables = dict(variables or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._start_again_at: float | None = None
        self.ending = False
        """It was asked to end: its death is no surprise."""

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self.status is None

    @property
    def status(self) -> int | None:
        """How the last run ended; negative: by that signal. None while it runs."""
        if self._process is None:
            return None
        status = self._process.poll()
        if status is not None and self._process.stdin is not None:
            self._process.stdin.close()
        return status

    @property
    def deaths(self) -> int:
        """Unasked-for ends in a row."""
        return self._backoff.deaths

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        _set_aside(self.log)
        self.ending = False
        self._start_again_at = None
        self._started_at = time.monotonic()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=log if self._on_line is None else subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**self._defaults, **os.environ, **self._variables, CHILD: "1", "PYTHONUNBUFFERED": "1"},
            )
        if self._on_line is not None:
            assert self._process.stdout is not None
            reader = threading.Thread(
                target=self._pass_on, args=(self._process.stdout,), name=f"log of {self.name}", daemon=True
            )
            reader.start()

    def look_after(self) -> str | None:
        """Start it again once its back-off is over; the first look after a death says what happened."""
        if self.is_running or self.ending:
            return None
        now = time.monotonic()
        if self._start_again_at is None:
            pause = self._backoff.died(ran_seconds=now - self._started_at)
            self._start_again_at = now + pause
            return f"{self.name} {self.how_it_ended()}; starting it again in {pause:g} s"
        if now >= self._start_again_at:
            self.start()
        return None

    def how_it_ended(self) -> str:
        status = self.status
        if status is None:
            return "is running"
        if status >= 0:
            return f"ended with status {status}"
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-status).name}"
        return f"was ended by signal {-status}"

    def ask_to_end(self) -> None:
        """SIGTERM; also when it is stopped."""
        self.ending = True
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, to it and to whatever it has started in its session."""
        self.ending = True
        if self._process is not None and self.is_running:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within the time."""
        if self._process is None:
            return True
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, seconds))
        return not self.is_running

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        try:
            with self.log.open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - 16_384))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self.is_running:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _pass_on(self, output: IO[bytes]) -> None:
        assert self._on_line is not None
        with output, self.log.open("ab", buffering=0) as log:
            for line in output:
                log.write(line)
                self._on_line(line)


def end_with_parent() -> None:
    """In a child: end in order as soon as its parent is gone; at once where that takes long, and then by force.

    Called before anything else is started: the variable and the pipe are for this process alone.
    """
    if os.environ.pop(CHILD, None) is None:
        return
    lifeline = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    threading.Thread(target=_outlive_nobody, args=(lifeline,), name="batchyard-parent", daemon=True).start()


def _outlive_nobody(lifeline: int) -> None:
    while os.read(lifeline, 1):  # nobody writes; the end comes with the parent's
        pass
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        os.kill(os.getpid(), number)
        time.sleep(ORPHAN_SECONDS)


def end_all(
    children: Sequence[Child],
    *,
    grace_seconds: float,
    hurry: threading.Event | None = None,
    hurry_seconds: float = HURRY_SECONDS,
) -> list[str]:
    """Ask all to end, wait for them together, and kill those that do not; returns the names of the killed.

    As soon as `hurry` is set, those left are asked once more and have `hurry_seconds`.
    """
    for child in children:
        if not child.ending:  # for one that drains already this would mean to hurry
            child.ask_to_end()
    end = time.monotonic() + grace_seconds
    while (left := [child for child in children if child.is_running]) and time.monotonic() < end:
        if hurry is not None and hurry.is_set():
            hurry, end = None, min(end, time.monotonic() + hurry_seconds)
            for child in left:
                child.ask_to_end()
        left[0].wait(0.05)
    for child in left:
        child.kill()
    for child in left:
        child.wait(5.0)
    return [child.name for child in left]


def _set_aside(log: Path) -> None:
    with suppress(FileNotFoundError):
        if log.stat().st_size > LOG_BYTES:
            log.replace(log.with_name(log.name + ".old"))
