from collections import Counter

import msgspec
import pytest

from batchyard.errors import QueueFull, Unavailable, UnknownModel
from batchyard.jobs import Lane, State
from batchyard.settings import PoolSettings
from batchyard.store.base import ConsumerInfo, ModelVersion
from tests.unit.samples import CatalogStore, Clock, backlog_row, catalog, consumer, model_version


def test_a_qualified_name_is_that_version_and_an_alias_one_by_weight() -> None:
    store = CatalogStore(
        model_version("echo@1", id=1, weight=3.0),
        model_version("echo@2", id=2, weight=1.0),
        model_version("echo@3", id=3, weight=0.0),
    )
    known = catalog(store)
    assert known.resolve("echo@3").id == 3
    drawn = Counter(known.resolve("echo").version for _ in range(4000))
    assert drawn.keys() == {"1", "2"}
    assert 2700 < drawn["1"] < 3300


def test_an_unknown_model_is_told_what_exists_and_what_is_nearest() -> None:
    known = catalog(CatalogStore(model_version("minilm@1"), model_version("other@1", id=2)))
    with pytest.raises(UnknownModel, match='did you mean "minilm"') as caught:
        known.resolve("minilmm")
    assert caught.value.details == {"allowed": ["minilm", "minilm@1", "other", "other@1"], "nearest": "minilm"}
    with pytest.raises(UnknownModel, match="none is configured"):
        catalog(CatalogStore(model_version(active=False))).resolve("echo")


def test_a_full_queue_says_when_there_will_be_room() -> None:
    store, clock = CatalogStore(), Clock()
    store.rows, store.fleet = [backlog_row(1, State.QUEUED, 90)], [consumer()]
    known = catalog(store, max_queued=100, clock=clock)
    known.refresh()
    clock.now += 1.0
    store.finished = {1: 4}
    known.refresh()
    known.admit(1, 8, tenant_id=1, size_bytes=0)
    with pytest.raises(QueueFull) as caught:
        known.admit(1, 42, tenant_id=1, size_bytes=0)
    # 90 + 8 + 42 is 40 too many, at 4 jobs a second.
    assert caught.value.details == {"limit": 100, "retry_after_seconds": 10}
    known.refresh()
    known.admit(1, 10, tenant_id=1, size_bytes=0)


@pytest.mark.parametrize(
    ("version", "fleet", "seconds"),
    [
        (model_version(), [consumer()], 30),
        (model_version(seconds_per_unit=0.2), [consumer(id=1), consumer(id=2)], 10),
        (model_version(seconds_per_unit=0.2), [consumer(id=1, state="starting")], 20),
        (model_version(seconds_per_unit=0.2, load_seconds=7.0), [], 27),
        (model_version(seconds_per_unit=50.0), [consumer()], 300),
    ],
)
def test_a_full_queue_nobody_has_seen_drain_goes_by_the_learned_speed(
    version: ModelVersion, fleet: list[ConsumerInfo], seconds: int
) -> None:
    store = CatalogStore(version)
    store.rows, store.fleet = [backlog_row(1, State.QUEUED, 90, cost=450)], fleet
    with pytest.raises(QueueFull) as caught:
        catalog(store, max_queued=100).admit(1, 30, tenant_id=1, size_bytes=0)
    # 20 jobs too many, of 5 units each.
    assert caught.value.details["retry_after_seconds"] == seconds


def test_the_speed_is_measured_while_there_is_work() -> None:
    store, clock = CatalogStore(), Clock()
    known = catalog(store, clock=clock)
    store.fleet = [consumer()]
    for finished in range(0, 1000, 100):
        store.rows, store.finished = [backlog_row(1, State.QUEUED, 10)], {1: finished}
        known.refresh()
        clock.now += 1.0
    speed = known.load(1).jobs_per_second
    assert speed == pytest.approx(100.0)
    store.rows = []  # idle from here on
    for _ in range(100):
        clock.now += 1.0
        known.refresh()
    assert known.load(1).jobs_per_second == speed
    assert known.load(1).seconds_for(50) == pytest.approx(0.5)


@pytest.mark.parametrize("why", ["paused", "no consumer"])
def test_time_in_which_nobody_could_work_says_nothing_about_the_speed(why: str) -> None:
    store, clock = CatalogStore(), Clock()
    known = catalog(store, clock=clock)
    store.rows, store.fleet = [backlog_row(1, State.QUEUED, 10)], [consumer()]
    for finished in (0, 50, 100):
        store.finished = {1: finished}
        known.refresh()
        clock.now += 1.0
    if why == "paused":
        store.versions = [model_version(paused=frozenset({Lane.FIRM}))]
    else:
        store.fleet = []
    for _ in range(100):
        known.refresh()
        clock.now += 1.0
    assert known.load(1).jobs_per_second == pytest.approx(50.0)


def test_without_a_measurement_the_learned_speed_tells() -> None:
    store = CatalogStore(model_version(seconds_per_unit=0.1))
    store.rows = [backlog_row(1, State.QUEUED, 10, cost=100)]
    store.fleet = [consumer(id=1), consumer(id=2), consumer(id=3, state="gone")]
    load = catalog(store).load(1)
    assert load.ready == 2
    assert load.backlog_seconds == pytest.approx(10.0)
    assert load.seconds_for(5) == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("loaded", "load_error", "counts"), [(True, "once", (1, 0)), (False, "no such file", (0, 0)), (False, None, (0, 1))]
)
def test_a_consumer_that_could_not_load_a_model_does_not_serve_it(
    loaded: bool, load_error: str | None, counts: tuple[int, int]
) -> None:
    store = CatalogStore(model_version(load_error=load_error))
    store.fleet = [msgspec.structs.replace(consumer(), stats={"models": {"echo@1": {"loaded": loaded}}})]
    load = catalog(store).load(1)
    assert (load.ready, load.starting) == counts
    assert load.is_served is any(counts)


def test_pools_tell_whether_anything_could_serve_a_queue() -> None:
    spot = PoolSettings(name="spot", models=("echo",), capacity="spot")
    loads = catalog(CatalogStore(), pools=[spot])
    assert (loads.load(1).has_pool, loads.load(2).has_pool) == (False, True)


def test_an_unknown_queue_is_looked_up_once_more() -> None:
    store = CatalogStore()
    known = catalog(store)
    with pytest.raises(Unavailable):
        known.load(99)
    assert store.reads == 2


def test_a_schema_is_compiled_once_and_a_broken_one_checks_nothing() -> None:
    known = catalog(CatalogStore())
    version = model_version(input_schema={"type": "string"})
    assert known.validator(version) is not None
    assert known.validator(version) is known.validator(version)
    assert known.validator(model_version(input_schema={"type": "no such type"})) is None
    assert known.validator(model_version(input_schema={})) is None
