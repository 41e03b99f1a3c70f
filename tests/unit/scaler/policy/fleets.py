"""Fleets for tests, told briefly."""

import math
from collections.abc import Sequence
from typing import Any

from batchyard_scaler.policy.deciding import decide
from batchyard_scaler.policy.records import Budget, Decision, Demand, Due, Fleet, Pool, Replica, Zone

NO_DEADLINE = math.inf
COLD = 60.0


def pool(name: str = "p", *, ready: int = 0, busy: int = 0, starting: Sequence[float] = (), **changed: Any) -> Pool:
    """On demand, for m@1, up to 100, with starts of a minute that cost as much; of `ready`, so many are `busy`."""
    replicas = [Replica(state="ready", is_busy=index < busy) for index in range(ready)]
    replicas += [Replica(state="starting", ready_in_seconds=seconds) for seconds in starting]
    settings: dict[str, Any] = {
        "capacity": "on_demand",
        "models": frozenset({"m@1"}),
        "minimum": 0,
        "maximum": 100,
        "cold_start_seconds": COLD,
        "restart_cost_seconds": COLD,
        "replicas": replicas,
    }
    return Pool(name=name, **{**settings, **changed})


def spot(*, zones: Sequence[Zone] = (), ready: int = 0, busy: int = 0, starting: Sequence[float] = (),
         **changed: Any) -> Pool:  # fmt: skip
    """A pool on spot at a third of the price, its replicas in the first zone."""
    one = pool("spot", ready=ready, busy=busy, starting=starting, capacity="spot",
               **{"price_per_hour": 0.35, "zones": list(zones), **changed})  # fmt: skip
    if zones and "replicas" not in changed:
        placed = [Replica(state=r.state, ready_in_seconds=r.ready_in_seconds, is_busy=r.is_busy, zone=zones[0].name)
                  for r in one.replicas]  # fmt: skip
        return spot(zones=zones, **{**changed, "replicas": placed})
    return one


def due(in_seconds: float, work_seconds: float, *, jobs: int | None = None) -> Due:
    """Work in jobs of 10 ms, unless their number is given."""
    return Due(in_seconds=in_seconds, jobs=jobs or max(1, round(work_seconds * 100)), work_seconds=work_seconds)


def demand(*dues: Due, model: str = "m@1", is_tolerant: bool = False, **changed: Any) -> Demand:
    lane = "tolerant" if is_tolerant else "firm"
    in_order = sorted(dues, key=lambda one: one.in_seconds)
    return Demand(queue=f"{model} {lane}", model=model, is_tolerant=is_tolerant, due=in_order, **changed)


def fleet(pools: Sequence[Pool], demands: Sequence[Demand] = (), *, budget: Budget | None = None,
          due_step_seconds: float = 0.0) -> Fleet:  # fmt: skip
    return Fleet(now_seconds=0, pools=pools, demands=demands, budget=budget or Budget(),
                 due_step_seconds=due_step_seconds)  # fmt: skip


def decisions(pools: Sequence[Pool], *demands: Demand, **changed: Any) -> dict[str, Decision]:
    return {made.pool: made for made in decide(fleet(pools, demands, **changed))}


def decided(one: Pool, *demands: Demand, **changed: Any) -> Decision:
    return decisions([one], *demands, **changed)[one.name]
