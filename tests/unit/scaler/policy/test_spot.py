"""Tolerant work runs on spot, and on demand when spot can no longer make it."""

import math

import pytest

from batchyard_scaler.policy.records import Replica, Zone
from batchyard_scaler.policy.spot import can_count_on_starts, spread
from tests.unit.scaler.policy.fleets import COLD, NO_DEADLINE, decided, decisions, demand, due, pool, spot

HOUR = 3_600.0
CALM = [Zone(name="a"), Zone(name="b"), Zone(name="c")]
REFUSING = [Zone(name="a", refused_ago_seconds=1.0)]


def test_tolerant_work_goes_on_spot_and_firm_work_never() -> None:
    pools = [pool("od", price_per_hour=1.0), spot()]
    tolerant = decisions(pools, demand(due(660, 6_000), is_tolerant=True))
    assert tolerant["od"].replicas == 0
    assert tolerant["spot"].replicas >= 10
    firm = decisions(pools, demand(due(660, 6_000)))
    assert (firm["od"].replicas, firm["spot"].replicas) == (10, 0)


def test_spot_is_used_while_it_lasts_and_not_at_the_last_moment() -> None:
    """An hour on spot costs the same now and later, and later there may be none."""
    made = decisions([pool("od", price_per_hour=1.0), spot()], demand(due(4 * HOUR, 24_000), is_tolerant=True))
    assert made["spot"].replicas == 24_000 / (4 * COLD)
    assert made["spot"].rule == "spot"


def test_spot_keeps_half_of_short_slack_for_what_a_preemption_leaves_behind() -> None:
    work = demand(due(4 * HOUR, 24_000), is_tolerant=True)
    assert decided(spot(maximum=1_000, usual_slack_seconds=4 * HOUR), work).replicas == 24_000 / (4 * COLD)
    assert decided(spot(maximum=1_000, usual_slack_seconds=360.0), work).replicas == 24_000 / (180 - COLD)


def test_on_demand_helps_with_late_work_that_spot_does_not_catch_up_with() -> None:
    """Else all that comes after it were late in its turn."""
    behind = demand(due(-60, 3_000), is_tolerant=True)
    made = decisions([pool("od", price_per_hour=1.0), spot(ready=2, busy=2, zones=REFUSING)], behind)
    assert made["od"].replicas > 0


def test_little_tolerant_work_is_held_and_early_enough_for_another_try() -> None:
    on_spot = decisions([pool("od", price_per_hour=1.0), spot()], demand(due(HOUR, 30, jobs=1), is_tolerant=True))
    alone = decided(spot(), demand(due(HOUR, 30, jobs=1), is_tolerant=True))
    assert on_spot["spot"].replicas == alone.replicas == 0
    assert on_spot["spot"].next_look_seconds is not None
    assert alone.next_look_seconds is not None
    assert alone.next_look_seconds - on_spot["spot"].next_look_seconds == pytest.approx(2 * COLD)


@pytest.mark.parametrize("left", [4 * HOUR, HOUR, 600.0])
def test_work_waits_for_spot_that_does_not_come_while_its_slack_lasts(left: float) -> None:
    pools = [pool("od", price_per_hour=1.0), spot(zones=REFUSING)]
    made = decisions(pools, demand(due(left, 700), is_tolerant=True))
    assert made["od"].replicas == 0
    assert made["spot"].replicas > 0


def test_jobs_on_spot_are_wanted_before_they_are_due() -> None:
    """Three of 30 s would fit before the deadline, but for who must finish another job first."""
    assert decided(spot(), demand(due(160, 300, jobs=10), is_tolerant=True)).replicas == 10
    assert decided(pool(), demand(due(160, 300, jobs=10))).replicas == 4


def test_on_demand_takes_over_two_starts_before_its_own_latest_moment() -> None:
    pools = [pool("od", price_per_hour=1.0), spot(zones=REFUSING)]
    made = decisions(pools, demand(due(3 * COLD, 700), is_tolerant=True))
    assert made["od"].rule == "fallback"
    assert made["od"].replicas == math.ceil(700 / (2 * COLD))
    assert "spot cannot make the deadline in 3 min" not in made["spot"].reason
    assert "spot cannot make the deadline" in made["od"].reason


def test_a_small_on_demand_pool_takes_over_earlier() -> None:
    small = [pool("od", price_per_hour=1.0, maximum=2), spot(zones=REFUSING)]
    made = decisions(small, demand(due(HOUR, 6_900), is_tolerant=True))
    assert made["od"].replicas == 2


@pytest.mark.parametrize(("slack", "starts"), [(None, 2), (300, 2), (720, 3), (14_400, 4)])
def test_where_jobs_have_long_on_demand_takes_over_earlier_with_fewer_replicas(
    slack: float | None, starts: float
) -> None:
    """And no earlier than four starts before its own latest moment: until then spot may come back."""
    on_demand = pool("od", price_per_hour=1.0, usual_slack_seconds=slack)
    pools, last = [on_demand, spot(zones=REFUSING)], (1 + starts) * COLD
    assert decisions(pools, demand(due(last + 5, 100), is_tolerant=True))["od"].replicas == 0
    assert decisions(pools, demand(due(last - 5, 100), is_tolerant=True))["od"].replicas == 1


def test_only_what_spot_cannot_make_falls_back() -> None:
    pools = [pool("od", price_per_hour=1.0), spot(ready=5, busy=5, zones=REFUSING)]
    made = decisions(pools, demand(due(170, 5 * 170 + 200), is_tolerant=True))
    assert made["od"].replicas == 2
    assert made["od"].unmeetable_jobs == 0


def test_spot_that_starts_is_counted_on() -> None:
    pools = [pool("od", price_per_hour=1.0), spot(starting=[20.0] * 10, zones=REFUSING)]
    assert decisions(pools, demand(due(170, 1_400), is_tolerant=True))["od"].replicas == 0


def test_on_demand_is_let_go_once_spot_is_ahead_by_two_starts() -> None:
    on_demand = pool("od", price_per_hour=1.0, ready=4, busy=4)
    work = demand(due(600, 4_500), is_tolerant=True)
    behind = decisions([on_demand, spot(ready=8, busy=8)], work)
    ahead = decisions([on_demand, spot(ready=10, busy=10)], work)
    assert behind["od"].replicas > 0
    assert ahead["od"].replicas == 0


def test_firm_work_keeps_what_it_needs_when_spot_takes_over() -> None:
    on_demand = pool("od", price_per_hour=1.0, ready=4, busy=4)
    work = [demand(due(600, 700)), demand(due(600, 4_000), is_tolerant=True)]
    assert decisions([on_demand, spot(ready=10, busy=10)], *work)["od"].replicas == 2


def test_replicas_for_firm_work_help_with_tolerant_work_first() -> None:
    on_demand = pool("od", price_per_hour=1.0, ready=2, busy=1, minimum=2)
    made = decisions([on_demand, spot()], demand(due(600, 300)), demand(due(600, 800), is_tolerant=True))
    assert (made["od"].replicas, made["spot"].replicas) == (2, 0)


def test_late_tolerant_work_is_left_to_spot_where_there_is_some() -> None:
    late = demand(due(-60, 60), is_tolerant=True)
    with_spot = decisions([pool("od", price_per_hour=1.0), spot(ready=2, busy=2)], late)
    assert (with_spot["od"].replicas, with_spot["spot"].replicas) == (0, 2)
    without = decisions([pool("od", price_per_hour=1.0), spot(zones=REFUSING)], late)
    assert without["od"].replicas == 1


def test_a_paused_spot_pool_leaves_its_work_to_on_demand() -> None:
    pools = [pool("od", price_per_hour=1.0), spot(is_paused=True)]
    assert decisions(pools, demand(due(660, 6_000), is_tolerant=True))["od"].replicas == 10


def test_work_without_a_deadline_never_waits_on_demand_for_spot_to_be_ahead() -> None:
    pools = [pool("od", price_per_hour=1.0), spot(ready=2, busy=2)]
    assert decisions(pools, demand(due(NO_DEADLINE, 400), is_tolerant=True))["od"].replicas == 0


def test_one_or_two_more_where_a_loss_would_make_work_late() -> None:
    tight = demand(due(102, 395, jobs=395), is_tolerant=True)
    slack = demand(due(HOUR, 395, jobs=395), is_tolerant=True)
    assert decided(spot(ready=4, busy=4), tight).replicas == 5
    assert "1 more, should some be lost" in decided(spot(ready=4, busy=4), tight).reason
    assert decided(spot(ready=4, busy=4), slack).replicas == 4
    many = demand(due(102, 1_990, jobs=1_990), is_tolerant=True)
    assert decided(spot(ready=20, busy=20), many).replicas == 22
    assert decided(spot(ready=20, busy=20, maximum=21), many).replicas == 21


# --- zones ------------------------------------------------------------------------------------------------------------


def placed(**counts: int) -> list[Replica]:
    return [Replica(state="ready", zone=zone) for zone, count in counts.items() for _ in range(count)]


def test_replicas_are_spread_over_zones() -> None:
    assert spread(spot(zones=CALM), replicas=7) == {"a": 3, "b": 2, "c": 2}
    assert spread(spot(zones=CALM, replicas=placed(a=3)), replicas=5) == {"a": 3, "b": 1, "c": 1}
    assert spread(spot(zones=CALM, replicas=placed(a=5, b=1)), replicas=4) == {"a": 3, "b": 1, "c": 0}
    assert spread(spot(), replicas=3) == {}


@pytest.mark.parametrize(
    "rough",
    [
        Zone(name="a", preempted_ago_seconds=30.0, preemptions=1),
        Zone(name="a", preempted_ago_seconds=7 * COLD, preemptions=4),
        Zone(name="a", refused_ago_seconds=30.0),
    ],
)
def test_a_zone_that_took_or_refused_a_replica_is_avoided_for_a_while(rough: Zone) -> None:
    one = spot(zones=[rough, Zone(name="b")])
    assert spread(one, replicas=4) == {"a": 0, "b": 4}
    assert can_count_on_starts(one)
    assert not can_count_on_starts(spot(zones=[rough]))
    assert spread(spot(zones=[rough]), replicas=2) == {"a": 2}


def test_those_in_a_rough_zone_leave_first() -> None:
    zones = [Zone(name="a", preempted_ago_seconds=1.0, preemptions=1), Zone(name="b")]
    assert spread(spot(zones=zones, replicas=placed(a=2, b=3)), replicas=3) == {"a": 0, "b": 3}


def test_a_zone_is_calm_again_after_a_while() -> None:
    zones = [Zone(name="a", preempted_ago_seconds=2 * COLD, preemptions=2), Zone(name="b")]
    assert spread(spot(zones=zones), replicas=4) == {"a": 2, "b": 2}


def test_a_decision_tells_the_zones_of_a_spot_pool() -> None:
    made = decided(spot(zones=CALM), demand(due(660, 3_000), is_tolerant=True))
    assert sum(made.zones.values()) == made.replicas
