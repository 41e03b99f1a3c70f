"""The record of what a process executes: kept when it dies, told once, and never of the living."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from batchyard import flight_recorder
from batchyard.errors import Unavailable
from batchyard.flight_recorder import SLOT_JOBS, Flight, FlightRecorder, tell_of_deaths
from batchyard.store.base import JobStore

PROGRAM = """
import os, pathlib, sys, time
from batchyard.flight_recorder import FlightRecorder
recorder = FlightRecorder(pathlib.Path(sys.argv[1]))
recorder.registered(77)
recorder.begin(0, owner=77, ids=[1, 2, 3])
recorder.begin(1, owner=66, ids=[9])
recorder.begin(2, owner=77, ids=[4])
recorder.end(2)
if len(sys.argv) > 2:
    loading = recorder.loading(int(sys.argv[2]))
    loading.__enter__()
if os.fork() == 0:  # as a model might
    time.sleep(60)
print("ready", flush=True)
sys.stdin.read()
"""


class Registry:
    """Remembers who was buried."""

    def __init__(self, *, is_away: bool = False) -> None:
        self.is_away = is_away
        self.buried: list[tuple[int, Sequence[int], str | None]] = []

    def bury(self, owner: int, *, executing: Sequence[int], cause: str | None = None) -> bool:
        if self.is_away:
            raise Unavailable("away")
        self.buried.append((owner, sorted(executing), cause))
        return True


def tell(folder: Path, registry: Registry, **arguments: object) -> int:
    return tell_of_deaths(folder, cast("JobStore", registry), **arguments)  # type: ignore[arg-type]


@contextmanager
def process(folder: Path, *, loading: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    version = () if loading is None else (str(loading),)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), *version],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == b"ready\n"
            yield started
        finally:
            os.killpg(started.pid, signal.SIGKILL)


def test_the_dead_are_told_of_once_and_the_living_never(tmp_path: Path) -> None:
    registry = Registry()
    with process(tmp_path) as started:
        assert tell(tmp_path, registry) == 0
        started.kill()
        started.wait()
        # Its child still runs: a lock that it had inherited would hide the death.
        assert tell(tmp_path, registry, cause="was ended by SIGKILL") == 2
    told = [(77, [1, 2, 3, 9], "was ended by SIGKILL"), (66, [1, 2, 3, 9], "was ended by SIGKILL")]
    assert registry.buried == told
    assert tell(tmp_path, registry) == 0
    assert list(tmp_path.iterdir()) == []


def test_an_end_that_was_asked_for_blames_nobody_and_is_told_of_one_process(tmp_path: Path) -> None:
    registry = Registry()
    with process(tmp_path) as other, process(tmp_path) as started:
        for each in (other, started):
            each.kill()
            each.wait()
        tell(tmp_path, registry, pid=started.pid, blames=False)
        assert registry.buried == [(77, [], None), (66, [], None)]
        assert [f"-{other.pid}-" in path.name for path in tmp_path.iterdir()] == [True]


def test_a_model_that_was_loading_is_to_blame_until_it_loads(tmp_path: Path) -> None:
    registry = Registry()
    for cause in ("was ended by SIGABRT", "was ended by SIGKILL"):
        with process(tmp_path, loading=5) as started:
            started.kill()
            started.wait()
            tell(tmp_path, registry, cause=cause)
    assert [executing for _, executing, _ in registry.buried] == [[], [], [], []]
    recorder = FlightRecorder(tmp_path)
    ends = recorder.load_ends(5)
    assert (ends.times, ends.last) == (2, "was ended by SIGKILL")
    assert 0 <= ends.seconds_ago < 60
    assert recorder.load_ends(6).times == 0
    with recorder.loading(5):
        assert recorder.read().loading == 5
    assert recorder.read().loading == 0
    assert recorder.load_ends(5).times == 0
    recorder.close()


def test_a_process_that_was_told_to_end_while_it_loaded_says_nothing_of_the_model(tmp_path: Path) -> None:
    with process(tmp_path, loading=5) as started:
        started.kill()
        started.wait()
        tell(tmp_path, Registry(), blames=False)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_told_now_is_told_later(tmp_path: Path) -> None:
    with process(tmp_path) as started:
        started.kill()
        started.wait()
        with pytest.raises(Unavailable):
            tell(tmp_path, Registry(is_away=True))
        registry = Registry()
        assert tell(tmp_path, registry) == 2


def test_a_process_that_ended_before_it_wrote_anything_has_nobody_to_bury(tmp_path: Path) -> None:
    record = tmp_path / f"{flight_recorder._machine()}-1-abc.flight"
    record.write_bytes(b"\0\0\0")
    registry = Registry()
    assert tell(tmp_path, registry) == 0
    assert not record.exists()


def test_records_from_before_a_reboot_blame_nobody_and_go(tmp_path: Path) -> None:
    old = tmp_path / f"{flight_recorder._host()}-00000000-1-abc.flight"
    old.write_bytes(b"\1" * 64)
    elsewhere = tmp_path / "another_host-00000000-1-abc.flight"
    elsewhere.write_bytes(b"\1" * 64)
    registry = Registry()
    assert tell(tmp_path, registry) == 0
    recorder = FlightRecorder(tmp_path)
    assert not old.exists()
    assert elsewhere.exists()
    recorder.close()
    assert list(tmp_path.iterdir()) == [elsewhere]


def test_a_record_shows_what_executes_now() -> None:
    recorder = FlightRecorder(None)
    assert recorder.read() == Flight([], [])
    recorder.registered(5)
    assert recorder.read() == Flight([5], [])
    recorder.begin(7, owner=5, ids=[3, 1])
    assert recorder.read() == Flight([5], [3, 1])
    recorder.begin(7, owner=5, ids=[8])
    assert recorder.read() == Flight([5], [8])
    recorder.end(7)
    assert recorder.read() == Flight([5], [])
    recorder.begin(0, owner=5, ids=list(range(1, SLOT_JOBS + 10)))
    assert len(recorder.read().executing) == SLOT_JOBS
