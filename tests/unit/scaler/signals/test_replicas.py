"""Consumers as replicas; zones."""

import math

from batchyard.settings import PoolSettings
from batchyard_scaler.policy.records import Replica
from batchyard_scaler.signals.replicas import Business, Zones, replicas_of
from batchyard_scaler.signals.starts import Starts
from tests.unit.scaler.queues import consumer

POOL = PoolSettings(name="p", models=("m",), capacity="spot", zones=("a", "b"))
NOW_MS = 1_700_000_000_000


def test_replicas_are_those_registered_and_those_asked_for() -> None:
    consumers = [
        consumer(1, state="starting", started_ms=NOW_MS - 4_000, zone="a"),
        consumer(2),
        consumer(3, state="draining", zone="b"),
        consumer(4, state="gone"),
        consumer(5, state="dead"),
    ]
    found = replicas_of(
        consumers,
        unregistered_since_ms=[NOW_MS - 1_000],
        starts=Starts(),
        usual_seconds=10.0,
        busy={2},
        now_ms=NOW_MS,
    )
    assert found == [
        Replica(state="starting", ready_in_seconds=6.0, zone="a"),
        Replica(state="ready", is_busy=True),
        Replica(state="draining", zone="b"),
        Replica(state="starting", ready_in_seconds=9.0),
    ]


def test_who_held_jobs_or_ended_some_since_the_last_look_was_busy() -> None:
    business = Business()
    idle, busy = {"pool": 0}, {"pool": 0, "device": 3}
    assert business.of([consumer(1, held=idle), consumer(2, held=busy)]) == {2}
    finished = [consumer(1, finished={"succeeded": 5}, held=idle), consumer(2, held=idle)]
    assert business.of(finished) == {1}
    assert business.of(finished) == set()


def test_a_pool_is_idle_while_one_of_its_replicas_is() -> None:
    business = Business()
    idle, busy = Replica(state="ready"), Replica(state="ready", is_busy=True)
    looks = [
        ([busy], 0.0),
        ([busy, idle], 5.0),
        ([idle], 9.0),
        ([busy, Replica(state="starting")], 10.0),
        ([idle], 11.0),
    ]
    assert [business.idle_for("p", replicas, now=now) for replicas, now in looks] == [0.0, 0.0, 4.0, 0.0, 0.0]


def test_zones_tell_of_preemptions_within_the_hour() -> None:
    lost = [(100_000, "a"), (3_000_000, "a"), (4_000_000, "a"), (9_000, "c")]
    consumers = [
        consumer(number, state="gone", zone=zone, preempted_ms=NOW_MS - ago) for number, (ago, zone) in enumerate(lost)
    ]
    zones = Zones().of(POOL, consumers, asked={}, patience_seconds=60.0, now_ms=NOW_MS)
    assert [(zone.name, zone.preemptions, zone.preempted_ago_seconds) for zone in zones] == [
        ("a", 2, 100.0),
        ("b", 0, math.inf),
        ("c", 1, 9.0),
    ]


def test_a_zone_that_was_asked_in_vain_for_as_long_as_a_start_takes_has_refused() -> None:
    zones = Zones()

    def refused_ago(*, asked: int, here: int, seconds: int) -> float:
        consumers = [consumer(number, zone="a") for number in range(here)]
        now_ms = NOW_MS + seconds * 1000
        found = zones.of(POOL, consumers, asked={"a": asked}, patience_seconds=60.0, now_ms=now_ms)
        return found[0].refused_ago_seconds

    assert refused_ago(asked=2, here=1, seconds=0) == math.inf
    assert refused_ago(asked=2, here=1, seconds=59) == math.inf
    assert refused_ago(asked=2, here=1, seconds=61) == 0.0
    assert refused_ago(asked=1, here=1, seconds=71) == 10.0
    assert refused_ago(asked=2, here=1, seconds=100) == 39.0
