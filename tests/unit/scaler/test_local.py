"""Local pools with real processes and a real store."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from batchyard.devices import Devices
from batchyard.errors import Unavailable
from batchyard.flight_recorder import flights_of
from batchyard.jobs import Accepted, Lane, Submission
from batchyard.processes import Child, end_all
from batchyard.settings import PoolSettings, Settings
from batchyard.spot_trace import SpotTrace
from batchyard.store.base import ModelConfig, PoolDecision
from batchyard.testing import memory_store
from batchyard_scaler.local import LocalPool, LocalScaler
from batchyard_scaler.sizing import REPORT_MS
from batchyard_scaler.spot_emulation import SpotEmulation

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]
NOW_MS = 1_700_000_000_000
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); time.sleep(60)"
DIES = [sys.executable, "-c", "raise SystemExit(3)"]


MakePool = Callable[..., LocalPool]


@pytest.fixture
def deaths() -> list[Child]:
    """Consumers whose end was told of."""
    return []


@pytest.fixture
def make_pool(tmp_path: Path, deaths: list[Child]) -> Iterator[MakePool]:
    made: list[LocalPool] = []

    def make(command: list[str], *, devices: Devices | None = None, **settings: Any) -> LocalPool:
        pool = PoolSettings(name="local", models=("m",), drain_seconds=5.0, **settings)
        given = devices or Devices(None)
        made.append(LocalPool(pool, command=command, logs=tmp_path, on_death=deaths.append, devices=given))
        return made[-1]

    yield make
    end_all([child for pool in made for child in pool.children()], grace_seconds=2.0)


def until_gone(pool: LocalPool, *, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while pool.children() and time.monotonic() < end:
        pool.tend()
        time.sleep(0.01)
    assert not pool.children()


def test_consumers_are_started_and_drained(make_pool: MakePool, deaths: list[Child]) -> None:
    pool = make_pool(SLEEPER)
    pool.resize(2)
    started = pool.children()
    assert [child.name for child in started] == ["consumer 1 of local", "consumer 2 of local"]
    assert all(child.is_running for child in started)

    pool.resize(0)
    assert all(child.ending for child in started)
    until_gone(pool)
    assert sorted(child.name for child in deaths) == [child.name for child in started]


def test_those_that_hold_jobs_leave_last(make_pool: MakePool) -> None:
    pool = make_pool(SLEEPER)
    pool.resize(3)
    first, second, third = pool.staying
    assert third.pid is not None
    pool.resize(1, busy_pids={third.pid})
    assert pool.staying == [third]
    assert first.ending
    assert second.ending


def test_one_that_does_not_drain_is_killed_when_its_grace_is_over(make_pool: MakePool) -> None:
    pool = make_pool([sys.executable, "-c", STUBBORN])
    pool.resize(1)
    [child] = pool.staying
    end = time.monotonic() + 10
    while not child.tail() and time.monotonic() < end:
        time.sleep(0.01)
    pool.end(child, grace_seconds=0.1)
    until_gone(pool)
    assert child.how_it_ended() == "was ended by SIGKILL"


def test_a_consumer_that_dies_waits_for_its_back_off_and_its_end_is_told_of_once(
    make_pool: MakePool, deaths: list[Child]
) -> None:
    pool = make_pool(DIES)
    pool.resize(1)
    [child] = pool.children()
    assert child.wait(10)
    for _ in range(3):
        pool.tend()
    assert pool.children() == [child]
    assert (child.deaths, child.is_running, deaths) == (1, False, [child])


SAYS = ["sh", "-c", 'echo "$*" $CUDA_VISIBLE_DEVICES; exec sleep 60', "sh"]


def told(child: Child, *, lines: int = 1) -> str:
    """The last line of its log, once that has so many."""
    end = time.monotonic() + 20
    while len(child.tail().splitlines()) < lines and time.monotonic() < end:
        time.sleep(0.01)
    assert len(child.tail().splitlines()) == lines
    return child.tail(1)


def test_each_consumer_sees_its_own_device_alone_and_a_freed_one_goes_to_the_next(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    pool = make_pool(SAYS, devices=Devices(["GPU-a", "MIG-b"]), device="cuda")
    pool.resize(3)
    first, second = pool.children()
    assert [told(first), told(second)] == ["--device cuda:0 GPU-a", "--device cuda:0 MIG-b"]
    assert pool.most() == 2

    pool.end(first, grace_seconds=5.0)
    pool.resize(2)
    assert pool.staying == [second]  # the first still drains on its device
    assert first.wait(10)
    pool.tend()
    pool.resize(2)
    assert told(pool.staying[1], lines=2) == "--device cuda:0 GPU-a"


def test_a_consumer_that_dies_comes_back_on_its_device(make_pool: MakePool) -> None:
    devices = Devices(["GPU-a", "GPU-b"])
    pool = make_pool(SAYS, devices=devices, device="cuda", consumers_per_device=2)
    pool.resize(9)
    assert pool.most() == 4
    child = pool.staying[0]
    assert "GPU-a" in told(child)
    child._backoff._first = 0.0
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(10)
    pool.tend()
    pool.tend()
    assert child.is_running
    assert devices.free(pool.settings) == 0


class Yard:
    """A store whose clock is ours, a model that is loaded, and a local scaler whose consumers are processes that sleep
    and say nothing; what they would tell the store is told here."""

    def __init__(self, folder: Path, *pools: PoolSettings, spot: SpotEmulation | None = None) -> None:
        self.now_ms = NOW_MS
        self.store = memory_store(clock=lambda: self.now_ms)
        [self.model] = self.store.sync_models([ModelConfig(model="m", version="1", runtime="a:B")])
        self.store.report_version(self.model.id, digest="d", input_schema={}, cost_unit="bytes", load_seconds=1.0)
        self.store.report_speed(self.model.id, units_per_byte=1.0, seconds_per_unit=100.0)
        self.settings = Settings(state_dir=folder, pools=pools)
        self.scaler = LocalScaler(self.settings, store=self.store, command=lambda _: SLEEPER, spot=spot)

    def submit(self, jobs: int, *, lane: Lane = Lane.FIRM) -> list[int]:
        queue_id = self.model.queue_ids[lane]
        wanted = Submission(tenant_id=1, queue_id=queue_id, inputs=[b"1"] * jobs, costs=[1] * jobs)
        [made] = self.store.submit([wanted])
        assert isinstance(made, Accepted)
        return list(made.ids)

    def register(self, pid: int | None, *, pool: str = "local", host: str | None = None) -> int:
        owner = self.store.register_consumer(
            pool=pool,
            host=os.uname().nodename if host is None else host,
            pid=pid or 1,
            device="cpu",
            capacity="on_demand",
            queue_ids=[],
            lease_ms=3_600_000,
        )
        self.store.renew(owner, lease_ms=3_600_000, state="ready", stats={})
        return owner

    def staying(self) -> list[Child]:
        return [child for child in self.scaler.children() if not child.ending]

    def close(self) -> None:
        end_all(self.scaler.children(), grace_seconds=2.0)
        self.store.close()


MakeYard = Callable[..., Yard]


@pytest.fixture
def make_yard(tmp_path: Path) -> Iterator[MakeYard]:
    made: list[Yard] = []

    def make(*pools: PoolSettings, spot: SpotEmulation | None = None) -> Yard:
        made.append(Yard(tmp_path, *pools, spot=spot))
        return made[-1]

    yield make
    for yard in made:
        yard.close()


def test_the_last_decision_of_each_pool_is_kept_fresh_and_carried_out(make_yard: MakeYard) -> None:
    yard = make_yard(PoolSettings(name="idle", models=("other",), min=1), PoolSettings(name="local", models=("m",)))

    def local() -> PoolDecision:
        yard.scaler.look()
        [_, decision] = yard.store.decisions()
        return decision

    assert local().replicas == 0
    assert [(made.pool, made.replicas) for made in yard.store.decisions()] == [("idle", 1), ("local", 0)]
    assert len(yard.staying()) == 1
    written = []
    for _ in range(4):
        yard.now_ms += REPORT_MS // 2
        written.append(local().decided_at_ms - NOW_MS)
    assert written == [0, REPORT_MS, REPORT_MS, 2 * REPORT_MS]

    # Another number is told at once.
    yard.now_ms += 1
    yard.submit(1)
    decision = local()
    assert (decision.replicas, decision.backlog_jobs, decision.decided_at_ms) == (1, 1, yard.now_ms)
    assert len(yard.staying()) == 2


def test_consumers_elsewhere_count(make_yard: MakeYard) -> None:
    yard = make_yard(PoolSettings(name="local", models=("m",), min=3, max=3))
    elsewhere = yard.register(None, host="another")
    yard.scaler.look()
    assert len(yard.staying()) == 2
    for child in yard.staying():
        yard.register(child.pid)
    yard.store.deregister(elsewhere)
    yard.scaler.look()
    assert len(yard.staying()) == 3


def test_devices_bound_the_pools_that_share_them_and_the_decisions_say_so(
    make_yard: MakeYard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\nfor n in 0 1 2; do echo "GPU $n: NVIDIA L4 (UUID: GPU-$n)"; done\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    first = PoolSettings(name="first", models=("m",), min=2, max=8)
    other = PoolSettings(name="other", models=("o",), min=2, max=8, device="cuda:1,2")
    yard = make_yard(first, other, PoolSettings(name="cpu", models=("o",), min=2, max=2, device="cpu"))

    def look() -> dict[str, tuple[int, int, str]]:
        yard.scaler.look()
        staying = [child.name.rpartition(" ")[2] for child in yard.staying()]
        return {made.pool: (staying.count(made.pool), made.replicas, made.reason) for made in yard.store.decisions()}

    look()
    assert look() == {
        "first": (2, 2, "no work; min is 2"),
        "other": (1, 1, "no work; min is 1; there are devices for 1"),
        "cpu": (2, 2, "no work; min is 2"),
    }
    yard.submit(500)
    yard.now_ms += 10_000
    assert look()["first"][:2] == (2, 2)
    assert "there are devices for 2" in look()["first"][2]


def test_while_the_database_is_away_pools_hold_what_they_have_and_mend_it(
    make_yard: MakeYard, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard = make_yard(PoolSettings(name="local", models=("m",), min=1))
    yard.scaler.look()
    [child] = yard.staying()
    assert child.pid is not None

    def away(*_: object, **__: object) -> None:
        raise Unavailable("gone")

    monkeypatch.setattr(yard.store, "models", away)
    monkeypatch.setattr(yard.store, "lead", away)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(10)
    end = time.monotonic() + 10
    while not child.is_running and time.monotonic() < end:
        yard.now_ms += 1_000
        with suppress(Unavailable):
            yard.scaler.look()
        time.sleep(0.02)
    assert yard.staying() == [child]
    assert child.is_running


def test_another_scaler_that_leads_is_left_to_decide(make_yard: MakeYard) -> None:
    yard = make_yard(PoolSettings(name="local", models=("m",), min=1))
    yard.store.lead("scaler", holder=5, lease_ms=60_000)
    yard.scaler.look()
    assert yard.scaler.children() == []
    assert yard.store.decisions() == []


def test_spot_consumers_go_and_come_with_the_capacity_of_a_trace(make_yard: MakeYard) -> None:
    seconds = 0.0
    trace = SpotTrace(zone="us-east-1a", changes=[(0.0, 2), (100.0, -1), (200.0, 2)], seconds=1000.0)
    spot = SpotEmulation(trace, notice_seconds=7.0, speed=10.0, clock=lambda: seconds)
    cheap = PoolSettings(name="cheap", models=("m",), capacity="spot", min=3, max=3)
    yard = make_yard(PoolSettings(name="local", models=("m",), min=1), cheap, spot=spot)

    def staying(pool: str) -> list[Child]:
        return [child for child in yard.staying() if child.name.endswith(f"of {pool}")]

    yard.scaler.look()
    oldest, other = staying("cheap")
    owner = yard.register(oldest.pid, pool="cheap")
    yard.scaler.look()

    seconds = 10.0
    yard.scaler.look()
    assert oldest.ending
    assert staying("cheap") == [other]
    assert len(staying("local")) == 1
    [lost] = [info for info in yard.store.consumers() if info.id == owner]
    assert lost.preempted_at_ms == NOW_MS

    yard.store.deregister(owner)
    seconds = 20.0
    yard.scaler.look()
    assert len(staying("cheap")) == 3


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
        pool="o", host="h", pid=1, device="cpu", capacity="on_demand", queue_ids=[queue_id], lease_ms=600_000
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
