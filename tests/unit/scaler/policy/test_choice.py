"""Which pool does the work: the one where it costs least within the deadline."""

from batchyard_scaler.policy.choice import cheapest_first, markets
from tests.unit.scaler.policy.fleets import decisions, demand, due, pool


def test_pools_that_share_a_model_even_through_others_are_one_market() -> None:
    a, b, c, d = (
        pool(name, models=frozenset(models)) for name, models in {"a": "xy", "b": "z", "c": "yz", "d": "w"}.items()
    )
    found = [sorted(one.name for one in market) for market in markets([a, b, c, d])]
    assert sorted(found) == [["a", "b", "c"], ["d"]]
    assert markets([pool("none", models=frozenset()), pool("e", models=frozenset())]) != []


def test_much_work_goes_where_an_hour_of_it_is_cheapest() -> None:
    slow = pool("slow", price_per_hour=1.0, speed=1.0)
    fast = pool("fast", price_per_hour=3.0, speed=4.0)
    made = decisions([slow, fast], demand(due(660, 24_000)))
    assert (made["slow"].replicas, made["fast"].replicas) == (0, 10)


def test_little_work_goes_where_a_replica_is_ready() -> None:
    cheap = pool("cheap", price_per_hour=1.0)
    dear = pool("dear", price_per_hour=1.5, ready=1)
    assert [one.name for one in cheapest_first([cheap, dear], work_seconds=10)] == ["dear", "cheap"]
    assert [one.name for one in cheapest_first([cheap, dear], work_seconds=10_000)] == ["cheap", "dear"]


def test_where_a_price_is_not_known_hours_are_compared() -> None:
    fast = pool("fast", price_per_hour=None, speed=2.0)
    slow = pool("slow", price_per_hour=0.1)
    assert [one.name for one in cheapest_first([slow, fast], work_seconds=100)] == ["fast", "slow"]


def test_what_the_cheap_pool_may_not_take_goes_to_the_next() -> None:
    cheap, dear = pool("cheap", price_per_hour=1.0, maximum=4), pool("dear", price_per_hour=2.0)
    made = decisions([cheap, dear], demand(due(660, 6_000)))
    assert (made["cheap"].replicas, made["dear"].replicas) == (4, 6)
    assert made["cheap"].unmeetable_jobs == made["dear"].unmeetable_jobs == 0


def test_a_start_that_comes_too_late_leaves_the_work_to_a_quicker_pool() -> None:
    cheap = pool("cheap", price_per_hour=1.0, cold_start_seconds=600.0)
    quick = pool("quick", price_per_hour=2.0, cold_start_seconds=30.0)
    made = decisions([cheap, quick], demand(due(330, 3_000)))
    assert (made["cheap"].replicas, made["quick"].replicas) == (0, 10)
