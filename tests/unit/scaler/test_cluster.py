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
from batchyard_scaler.signals.fleet import Signals

NOW_MS = 1_700_000_000_000


class Yard:
    """A store with a pool `p` of one model whose jobs take 100 s each, a clock, and a scaler on them."""

    def __init__(self, folder: Path) -> None:
        self.now_ms = NOW_MS
        self.store = memory_store(clock=lambda: self.now_ms)
        [model] = self.store.sync_models([ModelConfig(model="m", version="1", runtime="a:B")])
        self.model = model
        self.store.report_version(model.id, digest="d", input_schema={}, cost_unit="bytes", load_seconds=1.0)
        self.store.report_speed(model.id, units_per_byte=1.0, seconds_per_unit=100.0)
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

    assert (made.replicas, made.live, made.rule) == (5, 1, "maximum")
    assert (made.backlog_jobs, made.backlog_seconds) == (8, 800.0)


def test_replicas_that_wait_for_their_nodes_are_not_let_go_early(yard: Yard) -> None:
    ids = yard.submit(8)
    assert yard.decided().replicas == 5
    for job_id in ids[4:]:
        yard.store.cancel(job_id, tenant_id=1)
    yard.now_ms += 59_000
    assert (yard.decided().replicas, yard.decided().live) == (5, 0)


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


def test_a_pin_and_a_pause_hold_from_the_next_round_on(yard: Yard) -> None:
    yard.store.pin_pool("p", replicas=3)
    assert (yard.decided().replicas, yard.decided().rule) == (3, "pinned")
    yard.store.set_pool_paused("p", paused=True)
    assert (yard.decided().replicas, yard.decided().rule) == (0, "paused")
    yard.store.set_pool_paused("p", paused=False)
    yard.store.pin_pool("p", replicas=None)
    assert yard.decided().rule != "pinned"


def test_of_two_scalers_one_decides_and_the_other_takes_over_when_its_lease_lapses(yard: Yard) -> None:
    yard.scaler.look()
    other = yard.new_scaler()
    yard.submit(8)
    yard.now_ms += 2_000
    other.look()
    assert [made.replicas for made in yard.store.decisions()] == [0], "the other leads, and has not looked since"

    yard.now_ms += 3_001
    other.look()
    assert [made.replicas for made in yard.store.decisions()] == [5]
    yard.scaler.look()
    assert [made.decided_at_ms for made in yard.store.decisions()] == [yard.now_ms], "one who lost the lease is quiet"


def test_a_leader_that_was_stopped_in_the_middle_of_a_round_changes_nothing(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard.register()
    yard.scaler.look()
    other, read = yard.new_scaler(), yard.store.now_ms

    def stopped_meanwhile() -> int:
        """Nearly all was read, and then the process stood still while another led for a while."""
        monkeypatch.setattr(yard.store, "now_ms", read)
        for _ in range(5):
            yard.now_ms += 10_000
            other.look()
        return read()

    yard.submit(8)
    monkeypatch.setattr(yard.store, "now_ms", stopped_meanwhile)
    yard.scaler.look()

    [made] = yard.store.decisions()
    [spent] = yard.store.spent(since_hour=0)
    assert (made.decided_at_ms, made.replicas) == (yard.now_ms, 5)
    assert spent.replica_seconds == 50.0
    # The other has ended without a word: the first goes on from what it left.
    for seconds in (6, 20):
        yard.now_ms += seconds * 1000
        yard.scaler.look()
    [spent] = yard.store.spent(since_hour=0)
    assert spent.replica_seconds == 76.0


def test_what_was_learned_and_spent_outlives_the_scaler(yard: Yard) -> None:
    hour_ms = 3_600_000
    yard.now_ms = NOW_MS // hour_ms * hour_ms
    yard.settings = Settings(
        state_dir=yard.settings.state_dir,
        pools=(PoolSettings(name="p", models=("m",), max=5, price_per_hour=36.0),),
    )
    yard.scaler = yard.new_scaler()
    yard.scaler.look()
    owner = yard.register()
    yard.now_ms += 7_000
    yard.store.renew(owner, lease_ms=hour_ms, state="ready", stats={"seconds_per_unit": {"m@1": 2.0}})
    for _ in range(2):
        yard.scaler.look()
        yard.now_ms += 100_000
    yard.scaler.look()

    assert yard.store.learned()["starts"] == {"p": [7.0]}
    assert list(yard.store.learned()["speeds"]) == ["m@1 cpu"]
    [spent] = yard.store.spent(since_hour=0)
    assert (spent.pool, spent.replica_seconds) == ("p", 207.0)
    assert spent.dollars == pytest.approx(2.07)

    yard.scaler = yard.new_scaler()
    yard.now_ms += 100_000
    yard.scaler.look()
    [spent] = yard.store.spent(since_hour=0)
    assert spent.replica_seconds == 307.0, "what passed while nobody led is counted by the next"


def test_replicas_that_do_not_hold_all_their_models_need_time_to_swap(tmp_path: Path) -> None:
    yard = Yard(tmp_path)
    signals = Signals(yard.settings, yard.store)

    def swap_seconds() -> float:
        [pool] = signals.look(held=lambda _, live: len(live), asked_zones={}).fleet.pools
        return pool.swap_seconds

    owner = yard.register()
    assert swap_seconds() == 0.0
    for loaded, seconds in ((True, 0.0), (False, 1.0)):
        stats = {"models": {"m@1": {"loaded": loaded}}}
        yard.store.renew(owner, lease_ms=3_600_000, state="ready", stats=stats)
        assert swap_seconds() == seconds
    yard.store.close()


def test_a_version_that_nobody_has_loaded_gets_a_replica_until_one_is_ready(yard: Yard) -> None:
    [_, other] = yard.store.sync_models(
        [ModelConfig(model=name, version="1", runtime="a:B") for name in ("m", "n")],
    )
    assert other.name == "n@1"
    pool = PoolSettings(name="p", models=("n",), idle_seconds=0.0)
    yard.settings = Settings(state_dir=yard.settings.state_dir, pools=(pool,))
    yard.scaler = yard.new_scaler()
    made = yard.decided()
    assert (made.replicas, made.rule) == (1, "load")
    assert "n@1 to be loaded for the first time" in made.reason

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
