"""Measures of replays computed by hand, and what a report says of them."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest

from batchyard_scaler.simulator.comparing import Comparison, compare
from batchyard_scaler.simulator.engine import Replayed
from batchyard_scaler.simulator.measures import Measures, measure, pareto
from batchyard_scaler.simulator.peers import fixed, ours
from batchyard_scaler.simulator.replicas import Spent
from batchyard_scaler.simulator.report import as_json, markdown
from batchyard_scaler.simulator.service import World
from tests.unit.scaler.simulator.hand import pool_of, spot_of, trace_of


def replayed(*, price: float | None = 2.0) -> Replayed:
    """Four jobs: early, 10 s late, never finished, and without a deadline."""
    return Replayed(
        trace=trace_of([(0, 100, 500), (0, 200, 600), (0, 300, 700), (0, 400, np.inf)]),
        pools=[pool_of(price_per_hour=price, speed=2.0)],
        finished_at=np.array([400.0, 610.0, np.nan, 9_000.0]),
        spent={"pool": Spent(replica_seconds=7200, cold_seconds=3600, idle_seconds=1800, starts=3)},
        ended_at=10_000.0,
        decisions=7,
    )


def test_a_replay_by_hand() -> None:
    found = measure("one", [replayed()])
    assert (found.cost, found.cost_unit) == (4.0, "$")
    # A thousand seconds of work on a replica of speed 2 for two dollars an hour.
    assert found.cost_over_work == pytest.approx(4.0 / (1000 / 3600 * 2.0 / 2.0))
    assert (found.on_time_jobs, found.on_time_work) == (0.5, 0.5)
    assert (found.jobs, found.lost_jobs, found.starts) == (4, 1, 3)
    assert found.lateness_p99_seconds == pytest.approx(np.quantile([0, 10, 9_300, 0], 0.99))
    assert (found.cold_hours, found.idle_hours) == (1.0, 0.5)


def test_without_prices_the_cost_is_in_replica_hours() -> None:
    found = measure("one", [replayed(price=None)])
    assert (found.cost, found.cost_unit) == (2.0, "replica-hours")
    assert found.cost_over_work == pytest.approx(2.0 / (1000 / 3600 / 2.0))


def test_several_replays_are_taken_together() -> None:
    both = measure("two", [replayed(), replayed()])
    assert (both.cost, both.jobs, both.starts, both.decisions) == (8.0, 8, 6, 14)


def cost_and_share(name: str, cost: float, share: float) -> Measures:
    return msgspec.structs.replace(measure(name, [replayed()]), cost=cost, on_time_jobs=share)


def test_the_front_holds_those_that_no_other_beats() -> None:
    found = [
        cost_and_share("dear", 9, 1.0),
        cost_and_share("beaten", 8, 0.8),
        cost_and_share("cheap", 2, 0.5),
        cost_and_share("good", 5, 0.9),
        cost_and_share("same cost, worse", 5, 0.7),
    ]
    assert [one.contender for one in pareto(found)] == ["cheap", "good", "dear"]


def test_a_comparison_has_ours_on_all_pools_and_a_peer_on_those_on_demand() -> None:
    trace = trace_of([(at, 30.0, at + 900) for at in np.arange(0, 7200, 10.0)], seconds=7200)
    pools = [
        pool_of(name="firm", price_per_hour=1.0),
        pool_of(name="spot", capacity="spot", zones=["z"], price_per_hour=0.35),
    ]
    shown: list[float] = []
    found = compare(
        trace,
        pools=pools,
        contenders=[ours(), fixed(replicas=5)],
        spot=spot_of((0, 9)),
        world=World(),
        assumptions={"c": "60 s"},
        on_progress=lambda _, share: shown.append(share),
    )
    mine, peer = found.measures
    assert mine.on_time_jobs == peer.on_time_jobs == 1.0
    assert found.bound_cost is not None
    assert found.bound_cost <= mine.cost < 0.7 * peer.cost
    assert peer.cost == pytest.approx(5 * 2.0, rel=0.01)
    assert found.front == ["batchyard"]
    assert shown
    assert max(shown) <= 1.0
    _check_reports(found)


def _check_reports(found: Comparison) -> None:
    text = markdown(found)
    assert text.startswith("# by hand: 720 jobs in 0.08 days, a mean demand of 3.0 replicas\n\nc 60 s.\n")
    assert f"Clairvoyant bound: ${found.bound_cost:,.2f}." in text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["policy", "---", "batchyard", "fixed at 5"]
    assert len({len(row) for row in rows[:3]}) == 1
    document = json.loads(as_json(found))
    assert document["front"] == ["batchyard"]
    assert document["measures"][1]["contender"] == "fixed at 5"


def test_pools_without_a_model_in_common_are_replayed_apart() -> None:
    trace = trace_of([(0, 30, 900), (10, 30, 900)], models=[0, 1], seconds=1000)
    pools = [msgspec.structs.replace(pool_of(name=name), models=frozenset([name])) for name in ("a@1", "b@1")]
    found = compare(
        trace, pools=pools, contenders=[fixed(replicas=1)], spot={}, world=World(), assumptions={}, with_bound=False
    )
    assert found.measures[0].starts == 2
    assert found.measures[0].cost == pytest.approx(2 * 1000 / 3600)
    assert found.over_bound(found.measures[0]) is None
    assert "Clairvoyant" not in markdown(found)
