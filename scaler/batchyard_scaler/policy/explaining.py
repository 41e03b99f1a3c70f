"""Decisions in words, completing "N consumers: …"."""

from __future__ import annotations

from collections.abc import Sequence

from batchyard_scaler.policy.market import Want
from batchyard_scaler.policy.records import Budget, Demand, Fleet, Pool
from batchyard_scaler.policy.spot import is_calm

LIMITS = ("maximum", "minimum", "pinned")


def reason(want: Want, pool: Pool, *, fleet: Fleet) -> str:
    """Why a pool has the size it has: the work, the rule, and what cannot be made."""
    mine = [demand for demand in fleet.demands if pool.may_do(demand) and demand.due]
    parts = [_work(mine)]
    if (rule := _rule(want, pool, fleet.budget, has_work=bool(mine))) is not None:
        parts.append(rule)
    if pool.devices is not None and (not pool.devices or (want.rule in LIMITS and want.replicas == pool.devices)):
        parts.append(f"there are devices for {pool.devices}" if pool.devices else "no device is free for it")
    if want.extra:
        parts.append(f"{want.extra} more, should some be lost")
    if mine and (rough := [zone.name for zone in pool.zones if not is_calm(zone, pool=pool)]):
        is_everywhere = len(rough) == len(pool.zones)
        parts.append("no zone can be counted on now" if is_everywhere else f"avoiding {', '.join(rough)}")
    if missed := round(want.unmeetable_jobs):
        parts.append(f"{missed:,} {_jobs(missed)} can no longer be done in time")
    return "; ".join(parts)


def _work(demands: Sequence[Demand]) -> str:
    if not demands:
        return "no work"
    jobs = sum(due.jobs for demand in demands for due in demand.due)
    seconds = sum(due.work_seconds for demand in demands for due in demand.due)
    guess = "perhaps " if any(demand.is_prior for demand in demands) else ""
    took = f"{seconds:,.0f} s" if seconds >= 1 else "less than 1 s"
    known = ", which nobody has measured yet" if guess else ""
    return f"{jobs:,} {_jobs(jobs)}, {guess}{took} of one consumer's time{known}"


def _rule(want: Want, pool: Pool, budget: Budget, *, has_work: bool) -> str | None:
    due = "" if want.due_seconds is None else f" the deadline in {span(want.due_seconds)}"
    wait = span(want.wait_seconds or 0.0)
    if not has_work and want.rule in {"deadline", "spot", "fallback", "backlog"}:
        return "for what usually comes at this hour"
    match want.rule:
        case "paused":
            return "paused by hand"
        case "pinned":
            limit = f", max is {pool.maximum}" if (pool.pinned or 0) > pool.maximum else ""
            return f"fixed at {pool.pinned} by hand{limit}"
        case "load":
            return f"{', '.join(pool.never_loaded)} to be loaded for the first time"
        case "hold":
            return f"a start within {wait} is in time for{due}"
        case "deadline":
            return f"so many make{due}" if due else "late already, so done soon"
        case "spot":
            return f"on spot, so many make{due}" if due else "on spot, done soon"
        case "fallback":
            return f"spot cannot make{due}" if due else "spot is not far enough ahead to take over"
        case "backlog":
            return "without a deadline, so done soon"
        case "idle":
            return _idle(want, pool, has_work=has_work)
        case "minimum":
            return f"min is {pool.minimum}{_by(pool)}"
        case "maximum":
            return None if pool.devices is not None else f"max is {pool.maximum}{_by(pool)}"
        case _:
            return _short(budget)


def _idle(want: Want, pool: Pool, *, has_work: bool) -> str | None:
    """Nothing asks for this pool, though perhaps for others that do the same work."""
    if want.wait_seconds is not None:
        return f"the surplus leaves in {span(want.wait_seconds)}"
    if want.replicas:
        return "those that work finish what they hold"
    if has_work and not pool.maximum:
        return f"max is 0{_by(pool)}"
    if has_work:
        return "left to spot while that is in time" if want.is_sharing else "left to other pools"
    return None


def _by(pool: Pool) -> str:
    return " by the schedule" if pool.is_scheduled else ""


def _short(budget: Budget) -> str:
    limits = [(budget.per_hour, "an hour"), (budget.per_month, "a month")]
    told = " and ".join(f"${amount:,.2f} {unit}" for amount, unit in limits if amount is not None)
    return f"the budget of {told} allows no more"


def span(seconds: float) -> str:
    """A time for people."""
    if seconds < 0:
        return f"{span(-seconds)} ago"
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _jobs(count: int) -> str:
    return "job" if count == 1 else "jobs"
