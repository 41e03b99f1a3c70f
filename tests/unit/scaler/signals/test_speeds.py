"""Speeds by class of hardware."""

import msgspec

from batchyard.settings import PoolSettings
from batchyard_scaler.signals.speeds import KEPT, Speeds
from tests.unit.scaler.queues import consumer, version

CPU = PoolSettings(name="p", models=("m",))
GPU = PoolSettings(name="g", models=("m",), hardware="l4", speed=10.0)


def test_the_slower_consumers_count_and_speeds_are_compared_at_speed_1() -> None:
    speeds = Speeds([CPU, GPU])
    told = [1.0, 1.0, 1.1, 2.0, 9.0]
    speeds.see(consumer(number, seconds_per_unit={"m@1": seconds}) for number, seconds in enumerate(told))
    assert speeds.seconds_per_unit(version(), [CPU, GPU]) == 2.0
    speeds.see([consumer(7, pool="g", device="cuda:0", seconds_per_unit={"m@1": 0.3})])
    assert speeds.seconds_per_unit(version(), [CPU, GPU]) == 3.0
    assert speeds.seconds_per_unit(version(), [CPU]) == 2.0


def test_the_last_word_of_each_consumer_counts_and_outlives_the_scaler() -> None:
    speeds = Speeds([CPU])
    for seconds in (50.0, 1.0):
        speeds.see([consumer(1, seconds_per_unit={"m@1": seconds})])
    known = msgspec.json.decode(msgspec.json.encode(speeds.known()))
    assert known == {"m@1 cpu": {"1": 1.0}}

    later = Speeds([CPU], known=known)
    assert later.seconds_per_unit(version(), [CPU]) is None, "the class is not known before a consumer has told"
    later.see([consumer(2)])
    assert later.seconds_per_unit(version(), [CPU]) == 1.0
    later.see(consumer(number, seconds_per_unit={"m@1": 1.0}) for number in range(100))
    assert len(later.known()["m@1 cpu"]) == KEPT


def test_without_a_measure_by_class_the_versions_own_counts() -> None:
    speeds = Speeds([CPU])
    speeds.see([consumer(1, seconds_per_unit={"m@1": -1, "n@1": "x"}), consumer(2, pool="unknown")])
    assert speeds.seconds_per_unit(version(speed=0.5), [CPU]) == 0.5
    assert speeds.seconds_per_unit(version(), [CPU]) is None
