"""What a decision looks at, read from a real store."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from batchyard.jobs import Accepted, Lane, Submission
from batchyard.pool_figures import HOUR_MS
from batchyard.settings import BudgetSettings, PoolSettings, ScheduleSettings, Settings
from batchyard.store.base import JobStore, ModelConfig
from batchyard.testing import memory_store
from batchyard_scaler.policy.records import Demand, Fleet, Pool
from batchyard_scaler.signals.fleet import LEAST_IDLE_SECONDS, Signals

MIDNIGHT_MS = 1_700_006_400_000 // (24 * HOUR_MS) * 24 * HOUR_MS


class Yard:
    """A store with a clock of ours and one model whose unit of cost takes two seconds."""

    def __init__(self, folder: Path) -> None:
        self.now_ms = MIDNIGHT_MS
        self.folder = folder
        self.store: JobStore = memory_store(clock=lambda: self.now_ms)
        [self.model] = self.store.sync_models([ModelConfig(model="m", version="1", runtime="a:B")])
        self.store.report_version(self.model.id, digest="d", input_schema={}, cost_unit="bytes", load_seconds=50.0)
        self.store.report_speed(self.model.id, units_per_byte=1.0, seconds_per_unit=2.0)

    def signals(self, *pools: PoolSettings, budget: BudgetSettings | None = None) -> Signals:
        settings = Settings(state_dir=self.folder, pools=pools, budget=budget or BudgetSettings())
        return Signals(settings, self.store)

    def submit(self, jobs: int, *, lane: Lane = Lane.FIRM, in_seconds: float | None = None) -> list[int]:
        wanted = Submission(
            tenant_id=1,
            queue_id=self.model.queue_ids[lane],
            inputs=[b"1"] * jobs,
            costs=[1] * jobs,
            deadline_ms=None if in_seconds is None else self.now_ms + round(in_seconds * 1000),
        )
        [made] = self.store.submit([wanted])
        assert isinstance(made, Accepted)
        return list(made.ids)

    def consumer(self, *, pool: str, zone: str = "", **stats: object) -> int:
        owner = self.store.register_consumer(
            pool=pool, host="h", pid=1, device="cpu", capacity="spot", queue_ids=[], lease_ms=10 * HOUR_MS
        )
        self.store.renew(owner, lease_ms=10 * HOUR_MS, state="ready", stats=stats, zone=zone)
        return owner


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    yard = Yard(tmp_path)
    yield yard
    yard.store.close()


def look(signals: Signals, *, held: int | None = None) -> Fleet:
    return signals.look(held=lambda _, live: len(live) if held is None else held, asked_zones={}).fleet


def only(signals: Signals, *, held: int | None = None) -> Pool:
    [pool] = look(signals, held=held).pools
    return pool


def demand_of(signals: Signals) -> Demand:
    [demand] = look(signals).demands
    return demand


PLAIN = PoolSettings(name="p", models=("m",), max=7)


def test_a_pool_is_told_as_it_is_configured_and_as_it_was_measured(yard: Yard) -> None:
    nights = ScheduleSettings(from_minute=0, to_minute=6 * 60, min=2, max=3)
    pool = PoolSettings(name="p", models=("m",), max=7, price_per_hour=2.5, speed=4.0, schedule=(nights,))
    signals = yard.signals(pool)
    told = only(signals, held=2)
    assert (told.minimum, told.maximum, told.price_per_hour, told.speed) == (2, 3, 2.5, 4.0)
    assert (told.models, told.never_loaded) == (frozenset({"m@1"}), [])
    assert (told.cold_start_seconds, told.restart_cost_seconds) == (60.0, LEAST_IDLE_SECONDS), "by the loading's prior"
    assert [replica.state for replica in told.replicas] == ["starting", "starting"]

    yard.now_ms += 7 * HOUR_MS
    yard.consumer(pool="p", held={"device": 1})
    told = only(signals)
    assert (told.minimum, told.maximum) == (0, 7)
    assert [(replica.state, replica.is_busy) for replica in told.replicas] == [("ready", True)]


def test_work_is_told_by_queue_and_deadline(yard: Yard) -> None:
    signals = yard.signals(PLAIN)
    assert list(look(signals).demands) == []
    yard.submit(3, in_seconds=90)
    yard.submit(2, lane=Lane.TOLERANT)
    firm, tolerant = look(signals).demands
    assert [(due.in_seconds, due.jobs, due.work_seconds) for due in firm.due] == [(120.0, 3, 6.0)]
    assert (firm.is_tolerant, tolerant.is_tolerant, tolerant.queue) == (False, True, "m@1 tolerant")


def test_zones_and_what_is_left_of_the_budget_are_told(yard: Yard) -> None:
    spot = PoolSettings(name="p", models=("m",), capacity="spot", zones=("a", "b"), price_per_hour=36.0)
    signals = yard.signals(spot, budget=BudgetSettings(per_hour=40.0, per_month=1000.0))
    owner = yard.consumer(pool="p", zone="a")
    look(signals)
    yard.now_ms += 100_000
    yard.store.note_preempted(owner)
    yard.now_ms += 100_000
    fleet = look(signals)
    [pool] = fleet.pools
    assert [(zone.name, zone.preemptions, zone.preempted_ago_seconds) for zone in pool.zones][:1] == [("a", 1, 100.0)]
    assert fleet.budget.left_this_month == 998.0
    assert fleet.budget.left_this_hour == 40.0, "the bucket has filled meanwhile"


def test_what_comes_every_day_is_foretold_by_the_next_scaler_too(yard: Yard) -> None:
    signals = yard.signals(PLAIN)
    for hour in range(3 * 24 + 1):
        yard.now_ms = MIDNIGHT_MS + hour * HOUR_MS
        if hour % 24 == 9:
            look(signals)
            yard.submit(360)
        look(signals)
    yard.now_ms = MIDNIGHT_MS + (3 * 24 + 9) * HOUR_MS
    look(signals)

    later = yard.signals(PLAIN)
    later.begin(yard.store.learned())
    assert sum(due.work_seconds for due in demand_of(later).forecast) == pytest.approx(12.0)
    yard.now_ms += 2 * HOUR_MS
    assert demand_of(later).forecast == []


def test_a_paused_queue_is_no_work(yard: Yard) -> None:
    signals = yard.signals(PLAIN)
    yard.submit(1)
    yard.store.set_queue_paused(yard.model.queue_ids[Lane.FIRM], paused=True)
    assert list(look(signals).demands) == []
