"""Pools in a cluster: what is decided from what the store tells, and written down for KEDA."""

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from batchyard.errors import Unavailable
from batchyard.jobs import Accepted, Lane, Submission
from batchyard.settings import PoolSettings, Settings
from batchyard.store.base import ModelConfig, PoolDecision
from batchyard.testing import memory_store
from batchyard_scaler.cluster import ClusterScaler

NOW_MS = 1_700_000_000_000


class Yard:
    """A store with a pool `p` of one model whose jobs take 10 s each, a clock, and a scaler on them."""

    def __init__(self, folder: Path) -> None:
        self.now_ms = NOW_MS
        self.store = memory_store(clock=lambda: self.now_ms)
        [model] = self.store.sync_models([ModelConfig(model="m", version="1", runtime="a:B")])
        self.model = model
        self.store.report_version(model.id, digest="d", input_schema={}, cost_unit="bytes", load_seconds=1.0)
        self.store.report_speed(model.id, units_per_byte=1.0, seconds_per_unit=10.0)
        pool = PoolSettings(name="p", models=("m",), max=5, idle_seconds=60.0)
        self.settings = Settings(state_dir=folder, pools=(pool,))
        self.scaler = self.new_scaler()

    def new_scaler(self) -> ClusterScaler:
        return ClusterScaler(self.settings, store=self.store, clock=lambda: self.now_ms / 1000)

    def submit(self, jobs: int) -> list[int]:
        inputs, costs = [b"1"] * jobs, [1] * jobs
        queue_id = self.model.queue_ids[Lane.FIRM]
        [made] = self.store.submit([Submission(tenant_id=1, queue_id=queue_id, inputs=inputs, costs=costs)])
        assert isinstance(made, Accepted)
        return list(made.ids)

    def register(self) -> int:
        queue_ids = list(self.model.queue_ids.values())
        return self.store.register_consumer(
            pool="p", host="pod", pid=1, device="cpu", capacity="on_demand", queue_ids=queue_ids, lease_ms=3_600_000
        )

    def decided(self) -> PoolDecision:
        self.scaler.look()
        [made] = self.store.decisions()
        return made


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    yard = Yard(tmp_path)
    yield yard
    yard.store.close()


def test_a_backlog_is_decided_about_and_written_down(yard: Yard) -> None:
    assert yard.decided().replicas == 0
    yard.submit(8)
    yard.register()

    made = yard.decided()

    assert (made.replicas, made.live, made.backlog_jobs, made.backlog_seconds) == (4, 1, 8, 80.0)


def test_replicas_that_wait_for_their_nodes_are_not_let_go_early(yard: Yard) -> None:
    ids = yard.submit(8)
    assert yard.decided().replicas == 4
    for job_id in ids:
        yard.store.cancel(job_id, tenant_id=1)

    yard.now_ms += 59_000
    assert (yard.decided().replicas, yard.decided().live) == (4, 0)
    yard.now_ms += 1_000
    assert yard.decided().replicas == 0


def test_a_new_scaler_goes_on_from_a_fresh_decision(yard: Yard) -> None:
    yard.decided()
    [made] = yard.store.decisions()
    yard.store.report_decision(msgspec.structs.replace(made, replicas=3))
    yard.scaler = yard.new_scaler()
    assert yard.decided().replicas == 3


def test_a_new_scaler_starts_from_the_consumers_where_the_decision_is_stale(yard: Yard) -> None:
    yard.decided()
    [made] = yard.store.decisions()
    yard.store.report_decision(msgspec.structs.replace(made, replicas=3))
    yard.register()
    yard.now_ms += 61_000
    yard.scaler = yard.new_scaler()
    assert yard.decided().replicas == 1


def test_a_version_that_nobody_has_loaded_gets_a_replica_until_one_is_ready(yard: Yard) -> None:
    [_, other] = yard.store.sync_models(
        [ModelConfig(model=name, version="1", runtime="a:B") for name in ("m", "n")],
    )
    assert other.name == "n@1"
    pool = PoolSettings(name="p", models=("n",), idle_seconds=0.0)
    yard.settings = Settings(state_dir=yard.settings.state_dir, pools=(pool,))
    yard.scaler = yard.new_scaler()
    assert yard.decided().reason == "n@1 to be loaded for the first time"

    owner = yard.register()
    assert yard.decided().replicas == 1
    yard.store.renew(owner, lease_ms=3_600_000, state="ready", stats={})
    assert yard.decided().replicas == 0


def test_nothing_is_decided_while_the_database_is_away_and_all_goes_on_after(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    models = yard.store.models

    def away() -> list[object]:
        looks.append("away")
        if len(looks) == 1:
            raise Unavailable("gone")
        yard.scaler.stop()
        return models()  # type: ignore[return-value]

    monkeypatch.setattr(yard.store, "models", away)
    monkeypatch.setattr("batchyard_scaler.cluster.LOOK_SECONDS", 0.001)
    running = threading.Thread(target=yard.scaler.run)
    running.start()
    running.join(30)
    assert not running.is_alive()
    assert len(looks) == 2
    assert [made.pool for made in yard.store.decisions()] == ["p"]
