"""A local pool with real processes and a store that is told what to say."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from batchyard.flight_recorder import flights_of
from batchyard.jobs import Lane, Submission
from batchyard.processes import Child, end_all
from batchyard.settings import PoolSettings, Settings
from batchyard.store.base import ConsumerInfo, ModelConfig, PoolDecision
from batchyard.testing import memory_store
from batchyard_scaler.local import LocalPool, LocalScaler
from batchyard_scaler.sizing import REPORT_MS
from tests.unit.scaler.queues import row, version

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]
NOW_MS = 1_700_000_000_000
DIES = [sys.executable, "-c", "raise SystemExit(3)"]


def ready(pid: int) -> ConsumerInfo:
    return ConsumerInfo(
        id=1,
        pool="local",
        host=os.uname().nodename,
        pid=pid,
        device="cpu",
        capacity="on_demand",
        state="ready",
        queue_ids=(1, 2),
        stats={},
        started_at_ms=0,
        ready_at_ms=0,
        lease_until_ms=0,
    )


MakePool = Callable[..., LocalPool]


@pytest.fixture
def deaths() -> list[Child]:
    """Consumers whose end was told of."""
    return []


@pytest.fixture
def make_pool(tmp_path: Path, deaths: list[Child]) -> Iterator[MakePool]:
    made: list[LocalPool] = []

    def make(command: list[str], **settings: float) -> LocalPool:
        options: Mapping[str, float] = {"max": 2, "idle_seconds": 0.0, "drain_seconds": 5.0, **settings}
        pool = PoolSettings(name="local", models=("m",), **options)  # type: ignore[arg-type]
        made.append(LocalPool(pool, command=command, logs=tmp_path, on_death=deaths.append))
        return made[-1]

    yield make
    end_all([child for pool in made for child in pool.children()], grace_seconds=2.0)


def test_a_backlog_starts_consumers_and_its_end_drains_them(make_pool: MakePool) -> None:
    pool = make_pool(SLEEPER)

    pool.look([version(speed=1.0)], [row(10, cost=100)], [], now_ms=NOW_MS)
    started = pool.children()
    assert len(started) == 2
    assert all(child.is_running for child in started)

    pool.look([version(speed=1.0)], [], [], now_ms=NOW_MS)
    assert all(child.ending for child in started)

    end = time.monotonic() + 10
    while pool.children() and time.monotonic() < end:
        pool.look([version(speed=1.0)], [], [], now_ms=NOW_MS)
    assert not pool.children()


def test_a_consumer_that_dies_waits_for_its_back_off(make_pool: MakePool) -> None:
    pool = make_pool(DIES, min=1, max=1)
    pool.look([version()], [], [], now_ms=NOW_MS)
    [child] = pool.children()
    assert child.wait(10)

    pool.look([version()], [], [], now_ms=NOW_MS)

    assert pool.children() == [child]
    assert child.deaths == 1
    assert not child.is_running


def test_a_version_that_nobody_has_loaded_gets_a_consumer_once(make_pool: MakePool) -> None:
    pool = make_pool(SLEEPER)

    pool.look([version(digest=None)], [], [], now_ms=NOW_MS)
    [child] = pool.children()
    assert child.pid is not None

    # It is ready, and yet there is no digest: the model could not be loaded. That is not tried for ever.
    pool.look([version(digest=None)], [], [ready(child.pid)], now_ms=NOW_MS)
    assert child.ending


def test_what_was_decided_is_told(make_pool: MakePool) -> None:
    pool = make_pool(SLEEPER)

    first = pool.look([version(speed=1.0)], [row(10, cost=100)], [], now_ms=NOW_MS)
    unknown = pool.look([version()], [row(3)], [], now_ms=NOW_MS + 1)

    assert first == PoolDecision(
        pool="local",
        replicas=2,
        live=0,
        reason="10 jobs, 100 s of one consumer's time, max is 2",
        backlog_jobs=10,
        backlog_seconds=100.0,
        decided_at_ms=NOW_MS,
    )
    assert (unknown.live, unknown.backlog_jobs, unknown.backlog_seconds) == (2, 3, None)


def test_the_last_decision_of_each_pool_is_kept_fresh_in_the_store(tmp_path: Path) -> None:
    now_ms = NOW_MS
    store = memory_store(clock=lambda: now_ms)
    [model] = store.sync_models([ModelConfig(model="m", version="1", runtime="a:B")])
    store.report_version(model.id, digest="d", input_schema={}, cost_unit="bytes", load_seconds=1.0)
    pools = (PoolSettings(name="idle", models=("other",), min=1), PoolSettings(name="local", models=("m",)))
    scaler = LocalScaler(Settings(state_dir=tmp_path, pools=pools), store=store, command=lambda _: SLEEPER)

    def local() -> PoolDecision:
        scaler.look()
        [_, decision] = store.decisions()
        return decision

    try:
        assert local().replicas == 0
        assert [(made.pool, made.reason) for made in store.decisions()] == [
            ("idle", "no work, and min is 1"),
            ("local", "no work"),
        ]
        written = []
        for _ in range(4):
            now_ms += REPORT_MS // 2
            written.append(local().decided_at_ms - NOW_MS)
        assert written == [0, REPORT_MS, REPORT_MS, 2 * REPORT_MS]

        # Another number is told at once.
        now_ms += 1
        store.submit([Submission(tenant_id=1, queue_id=model.queue_ids[Lane.FIRM], inputs=[b"1"], costs=[1])])
        decision = local()
        assert (decision.replicas, decision.backlog_jobs, decision.decided_at_ms) == (1, 1, now_ms)
    finally:
        end_all(scaler.children(), grace_seconds=2.0)
        store.close()


def test_every_end_is_told_of_once(make_pool: MakePool, deaths: list[Child]) -> None:
    pool = make_pool(DIES, min=1, max=1)
    pool.look([version()], [], [], now_ms=NOW_MS)
    [child] = pool.children()
    assert child.wait(10)
    assert deaths == []
    for _ in range(3):
        pool.look([version()], [], [], now_ms=NOW_MS)
    assert deaths == [child]


ABORTS = """
import os, pathlib, sys
from batchyard.flight_recorder import FlightRecorder
recorder = FlightRecorder(pathlib.Path(sys.argv[1]))
recorder.registered(int(sys.argv[2]))
recorder.begin(0, owner=int(sys.argv[2]), ids=[int(sys.argv[3])])
os.abort()
"""


def test_what_a_consumer_died_of_is_known_before_its_lease_is_over(tmp_path: Path) -> None:
    store = memory_store()
    [model] = store.sync_models([ModelConfig(model="m", version="1", runtime="a:B")])
    queue_id = model.queue_ids[Lane.FIRM]
    [accepted] = store.submit([Submission(tenant_id=1, queue_id=queue_id, inputs=[b"1"], costs=[1])])
    assert not isinstance(accepted, Exception)
    [job_id] = accepted.ids
    owner = store.register_consumer(
        pool="p", host="h", pid=1, device="cpu", capacity="on_demand", queue_ids=[queue_id], lease_ms=600_000
    )
    store.claim([(queue_id, [job_id])], owner=owner)
    settings = Settings(state_dir=tmp_path, pools=(PoolSettings(name="p", models=("m",), min=1),))
    program = [sys.executable, "-c", ABORTS, str(flights_of(settings)), str(owner), str(job_id)]
    scaler = LocalScaler(settings, store=store, command=lambda _: program)
    try:
        scaler.look()
        [child] = scaler.children()
        assert child.wait(20)
        scaler.look()
        assert store.reap(limit=10) == {queue_id: [job_id]}
        [view] = store.get_jobs([job_id], tenant_id=1)
        assert view.crashes == 1
    finally:
        end_all(scaler.children(), grace_seconds=2.0)
        store.close()
