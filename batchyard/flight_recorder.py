"""What a consumer's process is executing, in a file that outlives it, and what is told of it after its death.

The file is mapped into memory: a note costs no system call, and what stands there stays when the process is killed. The
process holds a lock on it as long as it lives, so that anybody can tell the record of a dead process: the scaler that
started it, or the next consumer to start on this machine. POSIX locks on purpose: a process that a model has forked
does not keep them.

Layout, in 64-bit numbers of this machine: the owner id of the latest registration, then SLOTS slots, each with an
owner, a count and the ids of the jobs that one stage is executing; a count of 0 says that it executes nothing. Last the
id of the model version that is being loaded, or 0.

A version whose loading ended a process is noted beside the records until it loads, so that it does not end one after
the other.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import socket
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from batchyard.settings import Settings
from batchyard.store.base import JobStore

SLOTS = 16
SLOT_JOBS = 16_384
_SLOT_NUMBERS = 2 + SLOT_JOBS
_NUMBERS = 1 + SLOTS * _SLOT_NUMBERS + 1
_SUFFIX = ".flight"
_LOADS = ".loads"


class Flight(NamedTuple):
    """What one process was doing."""

    owners: Sequence[int]
    """Its registrations; those before the latest where a stage was still busy under them."""
    executing: Sequence[int]
    """Jobs, under whichever registration."""
    loading: int = 0
    """A model version."""


class LoadEnds(NamedTuple):
    """Processes that ended one after the other while they loaded a model version."""

    times: int
    last: str = ""
    """How, for people."""
    seconds_ago: float = 0.0


class FlightRecorder:
    """The record of this process. Each slot belongs to one thread; without a folder the record is in memory alone."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._path: Path | None = None
        self._file: int | None = None
        if folder is not None:
            self._path, self._file = _create(folder)
        self._map = mmap.mmap(-1 if self._file is None else self._file, 8 * _NUMBERS)
        self._numbers = memoryview(self._map).cast("q")

    def registered(self, owner: int) -> None:
        """Who this process is from now on."""
        self._numbers[0] = owner

    def begin(self, slot: int, *, owner: int, ids: Sequence[int]) -> None:
        """These jobs are executing; the count goes last, for the process may end at any moment."""
        start = 1 + slot * _SLOT_NUMBERS
        some = array("q", ids[:SLOT_JOBS])
        numbers = self._numbers
        numbers[start + 2 : start + 2 + len(some)] = memoryview(some)
        numbers[start] = owner
        numbers[start + 1] = len(some)

    def end(self, slot: int) -> None:
        self._numbers[1 + slot * _SLOT_NUMBERS + 1] = 0

    @contextmanager
    def loading(self, version_id: int) -> Iterator[None]:
        """A model version is being loaded, which may end the process too. One at a time."""
        self._numbers[-1] = version_id
        try:
            yield
        finally:
            self._numbers[-1] = 0
            if self._folder is not None:
                _loads(self._folder, version_id).unlink(missing_ok=True)

    def load_ends(self, version_id: int) -> LoadEnds:
        """Which processes of this machine the version has ended since it loaded last."""
        if self._folder is None:
            return LoadEnds(0)
        path = _loads(self._folder, version_id)
        try:
            ends = path.read_text().splitlines()
            return LoadEnds(len(ends), ends[-1], max(0.0, time.time() - path.stat().st_mtime))
        except (FileNotFoundError, IndexError):
            return LoadEnds(0)

    def read(self) -> Flight:
        """What stands there now."""
        return _read(self._numbers)

    def close(self) -> None:
        """This process ends in order: there is nothing to tell."""
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()


def flights_of(settings: Settings) -> Path:
    """Where the records of this configuration's consumers are."""
    return settings.state_dir / "flights"


def tell_of_deaths(
    folder: Path, store: JobStore, *, pid: int | None = None, cause: str | None = None, blames: bool = True
) -> int:
    """Bury every consumer of this machine whose process has ended with its record left over, or that of one `pid`;
    returns how many. `blames`: its end was unasked for. Unavailable leaves the records for the next to come.

    Not while this process has a record of its own: to look at that one would unlock it.
    """
    buried = 0
    for path in _records(folder, pid=pid):
        numbers = _of_dead(path)
        if numbers is None:
            continue
        flight = _read(numbers)
        # Where a model was loading beside them, jobs have the benefit of the doubt.
        executing = flight.executing if blames and not flight.loading else ()
        for owner in flight.owners:
            buried += store.bury(owner, executing=executing, cause=cause)
        if blames and flight.loading:
            with _loads(folder, flight.loading).open("a") as ends:
                ends.write(f"{cause or 'ended'}\n")
        with suppress(OSError):
            path.unlink()
    return buried


def _create(folder: Path) -> tuple[Path, int]:
    folder.mkdir(parents=True, exist_ok=True)
    of_today = f"{_machine()}-"
    for old in (path for path in folder.glob(f"{_host()}-*") if not path.name.startswith(of_today)):
        old.unlink(missing_ok=True)  # from before the machine was started
    path = folder / f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.ftruncate(file, 8 * _NUMBERS)
    return path, file


def _records(folder: Path, *, pid: int | None) -> Iterator[Path]:
    named = f"{_machine()}-{'*' if pid is None else pid}-*{_SUFFIX}"
    yield from sorted(folder.glob(named))


def _of_dead(path: Path) -> array[int] | None:
    """The record of a process that has ended; None where it lives, or somebody else has told of it."""
    try:
        with path.open("rb+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            content = file.read()
    except OSError:
        return None
    # Cut off where it ended before it had begun.
    return array("q", content.ljust(8 * _NUMBERS, b"\0")[: 8 * _NUMBERS])


def _read(numbers: Sequence[int]) -> Flight:
    owners: list[int] = [numbers[0]]
    executing: list[int] = []
    for slot in range(SLOTS):
        start = 1 + slot * _SLOT_NUMBERS
        owner, count = numbers[start], numbers[start + 1]
        if 0 < count <= SLOT_JOBS:
            owners.append(owner)
            executing += numbers[start + 2 : start + 2 + count]
    return Flight([owner for owner in dict.fromkeys(owners) if owner], executing, numbers[-1])


def _loads(folder: Path, version_id: int) -> Path:
    """How processes ended that loaded it, a line for each."""
    return folder / f"{_machine()}-{version_id}{_LOADS}"


def _host() -> str:
    return "".join(character if character.isalnum() else "_" for character in socket.gethostname())


def _machine() -> str:
    """This machine since it was started: what a reboot ended no job is to blame for."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        boot = "any"
    return f"{_host()}-{boot}"
