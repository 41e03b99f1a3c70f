"""The peers' policies by the numbers that they ask for, and how contenders are named."""

from __future__ import annotations

import pytest

from batchyard_scaler.policy.records import Demand, Due, Fleet, Pool, Replica
from batchyard_scaler.simulator import peers
from batchyard_scaler.simulator.autoscaler import Reading
from batchyard_scaler.simulator.peers import Contender, contender
from tests.unit.scaler.simulator.hand import pool_of


def fleet(pool: Pool, *, jobs: int, now: float = 0.0, in_seconds: float = 900.0) -> Fleet:
    due = [Due(in_seconds=in_seconds, jobs=jobs, work_seconds=30.0 * jobs)] if jobs else []
    demands = [Demand(queue="a@1 tolerant", model="a@1", is_tolerant=True, due=due)]
    return Fleet(now_seconds=now, pools=[pool], demands=demands)


def asks(one: Contender, *, jobs: int, busy: int = 0) -> float:
    pool = pool_of()
    replicas = [Replica(state="ready", is_busy=number < busy) for number in range(4)]
    pool = Pool(**{name: getattr(pool, name) for name in pool.__struct_fields__} | {"replicas": replicas})
    (decision,) = one.policy()(fleet(pool, jobs=jobs))
    return decision.value if isinstance(decision, Reading) else decision.replicas


def test_keda_sees_what_waits_and_not_what_runs() -> None:
    assert asks(peers.keda(length=5), jobs=12, busy=4) == 8 / 5


def test_backlog_per_instance_sees_both() -> None:
    assert asks(peers.backlog_per_instance(jobs=10), jobs=12, busy=4) == 1.2


def test_what_spot_has_not_got_falls_back_to_on_demand_at_once() -> None:
    spot = pool_of(name="spot", capacity="spot")
    there = [Replica(state="ready"), Replica(state="starting"), Replica(state="draining")]
    spot = Pool(**{name: getattr(spot, name) for name in spot.__struct_fields__} | {"replicas": there})
    told = fleet(spot, jobs=50)
    told = Fleet(now_seconds=0, pools=[spot, pool_of(name="on-demand")], demands=told.demands)
    asked = {made.pool: made for made in peers.backlog_falling_back(jobs=10).policy()(told)}
    assert (asked["spot"].replicas, asked["on-demand"].replicas) == (5, 3)


def test_fixed_is_held_to_the_maximum() -> None:
    assert asks(peers.fixed(replicas=5), jobs=0) == 5
    assert asks(peers.fixed(replicas=50), jobs=0) == 9


def test_ray_goes_up_after_its_delay_and_down_after_a_longer_one() -> None:
    policy, pool = peers.ray().policy(), pool_of()

    def at(now: float, jobs: int) -> int:
        return policy(fleet(pool, jobs=jobs, now=now))[0].replicas

    assert [at(0, 7), at(15, 7), at(30, 8)] == [0, 0, 4]
    # One look that asks for as many begins the delay anew.
    assert [at(45, 2), at(600, 8), at(615, 2), at(1200, 2), at(1215, 2)] == [4, 4, 4, 4, 1]


def test_a_hold_says_when_it_ends() -> None:
    policy, pool = peers.hold(seconds=600).policy(), pool_of()
    (early,) = policy(fleet(pool, jobs=1, in_seconds=900))
    assert (early.replicas, early.next_look_seconds) == (0, 300)
    (late,) = policy(fleet(pool, jobs=1, in_seconds=600))
    assert (late.replicas, late.next_look_seconds) == (1, None)
    (nothing,) = policy(fleet(pool, jobs=0))
    assert (nothing.replicas, nothing.next_look_seconds) == (0, None)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("batchyard", "batchyard"),
        ("fixed:20", "fixed at 20"),
        ("keda:5", "KEDA, list length 5"),
        ("backlog:2.5", "backlog per instance, 2.5 jobs"),
        ("ray:2", "Ray-style, 2 ongoing"),
        ("hold:600", "hold until 600 s are left"),
    ],
)
def test_contenders_by_name(text: str, name: str) -> None:
    assert contender(text).name == name


@pytest.mark.parametrize("text", ["keda", "keda:0", "keda:-1", "keda:x", "fixed:nan", "others:1", "batchyard:1", ""])
def test_another_name_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(ValueError, match="there are batchyard, fixed:N"):
        contender(text)
