"""Consumers that stop, hang or run out of memory while they hold jobs."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchyard.jobs import State
from tests.faults.memory import NoControlGroup, memory_group
from tests.faults.single.factors import LEASE_SECONDS, STATED_LEASE_SECONDS, shortened
from tests.services.consumers.yard import Yard, result, until, yard
from tests.services.store.yard import check_ledgers

HARMFUL = """
[models.harmful]
runtime = "tests.faults.single.models:Harmful"
batch_budget = 32
[pools.local]
models = ["harmful"]
drain_seconds = 5
"""
MEMORY_BYTES = 1024**3
REPOSITORY = Path(__file__).parents[3]
WITH_TESTS = {"PYTHONPATH": os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))}


@pytest.fixture
def place(tmp_path: Path, valkey_url: str) -> Iterator[Yard]:
    shortened("lease", LEASE_SECONDS, stated=STATED_LEASE_SECONDS)
    with yard(tmp_path, models=HARMFUL, broker_url=valkey_url) as made:
        yield made


def owners_of(place: Yard, pid: int) -> list[int]:
    return [info.id for info in place.store.consumers() if info.pid == pid]


def check_once(place: Yard, ids: list[int], *, attempts: set[int]) -> None:
    """Every job succeeded once, by its latest claim."""
    views = place.view(ids)
    assert {view.state for view in views} == {State.SUCCEEDED}
    assert {view.attempt for view in views} == attempts
    assert {view.failures for view in views} == {0}
    assert sum(row.jobs for row in place.store.usage()) == len(ids)
    check_ledgers(place.store)


def overtaken(place: Yard, harm: dict[str, Any], *, stop: Callable[[int], None], go_on: Callable[[int], None]) -> None:
    """One consumer is silent past its lease with jobs in hand, another does them, and the first comes back."""
    first = place.start(env=WITH_TESTS)
    place.ready()
    (before,) = owners_of(place, first.pid)
    ids = place.submit("harmful@1", [harm, *({"do": "echo", "value": n} for n in range(20))])
    until(lambda: place.states(ids).get(State.RUNNING, 0) > 0 and Path(harm["once"]).exists(), yard=place)
    stop(first.pid)
    place.start(env=WITH_TESTS)
    results = {view.id: result(view) for view in place.finish(ids)}
    assert list(results.values()) == [harm["value"], *range(20)]
    go_on(first.pid)
    until(lambda: len(owners_of(place, first.pid)) == 2, yard=place)  # it has noticed, and is somebody else now
    assert before not in {info.id for info in place.store.consumers() if info.state == "ready"}
    more = place.submit("harmful@1", [{"do": "echo", "value": n} for n in range(50)])
    place.finish(more)
    assert {view.id: result(view) for view in place.view(ids)} == results
    check_once(place, [*ids, *more], attempts={1, 2})


def test_a_consumer_suspended_past_its_lease_writes_nothing_late(place: Yard, tmp_path: Path) -> None:
    harm = {"do": "sleep", "value": 0.5, "once": str(tmp_path / "slept")}
    overtaken(
        place,
        harm,
        stop=lambda pid: os.kill(pid, signal.SIGSTOP),
        go_on=lambda pid: os.kill(pid, signal.SIGCONT),
    )


def test_a_consumer_whose_interpreter_is_held_past_its_lease_writes_nothing_late(place: Yard, tmp_path: Path) -> None:
    harm = {"do": "hold", "value": 5 * LEASE_SECONDS, "once": str(tmp_path / "held")}
    overtaken(place, harm, stop=lambda _pid: None, go_on=lambda _pid: None)


def test_an_input_beyond_the_memory_fails_alone(place: Yard) -> None:
    worker = place.start(env=WITH_TESTS)
    place.ready()
    deeds: list[dict[str, Any]] = [{"do": "echo", "value": n} for n in range(32)]
    deeds[11] = {"do": "eat", "value": 4 * 1024**3}
    views = place.finish(place.submit("harmful@1", deeds))
    assert result(views.pop(11)).code == "too_large"
    assert [result(view) for view in views] == [n for n in range(32) if n != 11]
    assert {view.failures for view in views} == {0}
    assert worker.poll() is None


def test_a_consumer_beyond_its_memory_limit_costs_nobody_anything_but_time(place: Yard, tmp_path: Path) -> None:
    """The kernel kills it in the middle of a pass, as it does with a container."""
    try:
        with memory_group(size=MEMORY_BYTES) as group:
            first = place.start(env=WITH_TESTS)
            group.add(first.pid)
            place.ready()
            deeds: list[dict[str, Any]] = [{"do": "echo", "value": n} for n in range(32)]
            deeds[11] = {"do": "swell", "value": 4 * MEMORY_BYTES, "once": str(tmp_path / "swollen")}
            ids = place.submit("harmful@1", deeds)
            until(lambda: first.poll() is not None, yard=place)
            assert first.returncode == -signal.SIGKILL
    except NoControlGroup as refused:
        pytest.skip(str(refused))
    place.start(env=WITH_TESTS)
    views = place.finish(ids)
    assert [result(view) for view in views] == [deed["value"] for deed in deeds]
    check_once(place, ids, attempts={2})


def test_a_consumer_killed_with_tickets_in_hand_costs_ten_seconds_at_most(place: Yard) -> None:
    """Between the broker's delivery and the claim: the tickets are with a process that will never claim."""
    first = place.start(env=WITH_TESTS)
    place.ready()
    os.kill(first.pid, signal.SIGSTOP)
    ids = place.submit("harmful@1", [{"do": "echo", "value": n} for n in range(200)])
    place.start(env=WITH_TESTS)
    place.ready(2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    until(lambda: place.states(ids).get(State.QUEUED, 0) == 0, timeout=10, yard=place)
    place.finish(ids)
    check_once(place, ids, attempts={1})


def test_what_was_committed_before_a_kill_stays(place: Yard) -> None:
    """A kill right after the commit of results: these stay, and nothing of them is run or counted again."""
    first = place.start(env=WITH_TESTS)
    place.ready()
    ids = place.submit("harmful@1", [{"do": "sleep", "value": 0.02}] * 200)
    until(lambda: place.states(ids).get(State.SUCCEEDED, 0) > 0, yard=place)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = {view.id for view in place.view(ids) if view.state is State.SUCCEEDED}
    assert 0 < len(done) < len(ids)
    place.start(env=WITH_TESTS)
    views = place.finish(ids)
    assert {view.attempt for view in views if view.id in done} == {1}
    check_once(place, ids, attempts={1, 2})
