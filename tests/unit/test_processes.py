"""Children that are looked after."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from batchyard.processes import Backoff, Child, end_all

SLEEPER = "import time; print('up', flush=True); time.sleep(60)"
COUNTER = """
import signal, sys, time
asked = []
def handle(*_):
    asked.append(1)
    print(len(asked), flush=True)
    if len(asked) == 2:
        sys.exit()
signal.signal(signal.SIGTERM, handle)
print("up", flush=True)
while True:
    time.sleep(60)
"""
"""Says how often it was asked to end, and does so the second time."""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def eventually(condition: Callable[[], bool], *, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def child_of(tmp_path: Path, code: str, *, backoff: Backoff | None = None) -> Child:
    return Child("the child", [sys.executable, "-c", code], log=tmp_path / "child.log", backoff=backoff)


def test_back_off_doubles_and_a_healthy_run_forgives() -> None:
    backoff = Backoff(first_seconds=1, longest_seconds=5, healthy_seconds=30)

    assert [backoff.died(ran_seconds=0.1) for _ in range(5)] == [1, 2, 4, 5, 5]
    assert backoff.died(ran_seconds=31) == 1
    assert backoff.deaths == 1


def test_a_child_that_dies_is_started_again(tmp_path: Path) -> None:
    child = child_of(tmp_path, "print('alive')", backoff=Backoff(first_seconds=0.05))
    child.start()
    first = child.pid
    assert child.wait(10)

    news = child.look_after()
    assert news == "the child ended with status 0; starting it again in 0.05 s"
    assert eventually(lambda: child.look_after() is None and child.pid != first)
    assert child.wait(10)
    assert child.tail() == "alive\nalive"


def test_the_way_it_ended_is_told(tmp_path: Path) -> None:
    child = child_of(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    child.start()
    assert child.wait(10)

    assert child.how_it_ended() == "was ended by SIGKILL"


def test_all_end_together_and_the_stubborn_are_killed(tmp_path: Path) -> None:
    obedient, stubborn = child_of(tmp_path / "a", SLEEPER), child_of(tmp_path / "b", STUBBORN)
    stubborn.name = "the stubborn one"
    for child in (obedient, stubborn):
        child.start()
        assert eventually(lambda child=child: child.tail() == "up")  # type: ignore[misc]

    assert end_all([obedient, stubborn], grace_seconds=0.5) == ["the stubborn one"]

    assert obedient.status == -signal.SIGTERM
    assert stubborn.status == -signal.SIGKILL
    assert obedient.look_after() is None


def test_lines_are_logged_and_passed_on(tmp_path: Path) -> None:
    lines: list[bytes] = []
    child = Child(
        "the child", [sys.executable, "-c", "print('one'); print('two')"], log=tmp_path / "log", on_line=lines.append
    )
    child.start()
    assert child.wait(10)

    assert eventually(lambda: lines == [b"one\n", b"two\n"])
    assert child.tail() == "one\ntwo"


def test_those_that_drain_already_are_not_hurried(tmp_path: Path) -> None:
    draining, ready = child_of(tmp_path / "a", COUNTER), child_of(tmp_path / "b", COUNTER)
    for child in (draining, ready):
        child.start()
        assert eventually(lambda child=child: child.tail() == "up")  # type: ignore[misc]
    draining.ask_to_end()
    assert eventually(lambda: draining.tail() == "up\n1")

    assert end_all([draining, ready], grace_seconds=0.5) == ["the child", "the child"]

    assert (draining.tail(), ready.tail()) == ("up\n1", "up\n1")


def test_in_a_hurry_they_are_asked_again_and_soon_killed(tmp_path: Path) -> None:
    patient, stubborn = child_of(tmp_path / "a", COUNTER), child_of(tmp_path / "b", STUBBORN)
    stubborn.name = "the stubborn one"
    for child in (patient, stubborn):
        child.start()
        assert eventually(lambda child=child: child.tail() == "up")  # type: ignore[misc]
    hurry = threading.Event()
    threading.Timer(0.3, hurry.set).start()
    begun = time.monotonic()

    assert end_all([patient, stubborn], grace_seconds=60, hurry=hurry, hurry_seconds=3) == ["the stubborn one"]

    assert time.monotonic() - begun < 30
    assert (patient.tail(), patient.status) == ("up\n1\n2", 0)


WITH_PARENT = "from batchyard.processes import end_with_parent; end_with_parent();"


@pytest.mark.parametrize(
    "child",
    [
        pytest.param(f"{WITH_PARENT} import time; time.sleep(60)", id="obedient"),
        pytest.param(f"{WITH_PARENT} {STUBBORN}", id="stubborn"),
        # It finds its parent dead when it looks for the first time.
        pytest.param(f"import time; print('up', flush=True); time.sleep(1); {WITH_PARENT} time.sleep(60)", id="late"),
        # What it starts has nothing to read, and nothing of its parent's.
        pytest.param(
            f"{WITH_PARENT} import subprocess, sys, time; subprocess.run(['cat']);"
            "subprocess.run([sys.executable, '-c', 'import os; print(os.environ.get(\"BATCHYARD_CHILD\"))']);"
            "time.sleep(60)",
            id="with a child of its own",
        ),
    ],
)
def test_a_child_ends_with_its_parent(tmp_path: Path, child: str, request: pytest.FixtureRequest) -> None:
    log = tmp_path / "log"
    parent = (
        "import sys, time; from pathlib import Path; from batchyard.processes import Child;"
        f"child = Child('x', [sys.executable, '-c', {child!r}], log=Path({str(log)!r}));"
        "child.start(); print(child.pid, flush=True); time.sleep(60)"
    )
    written = {"obedient": "", "with a child of its own": "None\n"}.get(request.node.callspec.id, "up\n")
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert eventually(lambda: log.read_text() == written)
        process.kill()

    assert eventually(lambda: not _is_alive(pid), seconds=20)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
