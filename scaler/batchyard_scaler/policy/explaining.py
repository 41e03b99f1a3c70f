"""Decisions in words, completing "N consumers: …"."""

from __future__ import annotations

from batchyard_scaler.policy.market import Want
from batchyard_scaler.policy.records import Budget, Pool

LIMITS = ("maximum", "minimum", "pinned")


def reason(want: Want, pool: Pool, *, budget: Budget) -> str:
    """Why a pool has the size it has: the work, the rule, and what cannot be made."""
    parts = [_work(want)]
    if (rule := _rule(want, pool, budget)) is not None:
        parts.append(rule)
    if pool.devices is not None and (not pool.devices or (want.rule in LIMITS and want.replicas == pool.devices)):
        parts.append(f"there are devices for {pool.devices}" if pool.devices else "no device is free for it")
    if want.extra:
        parts.append(f"{want.extra} more, should some be lost")
    if missed := round(want.unmeetable_jobs):
        parts.append(f"{missed:,} {_jobs(missed)} can no longer be done in time")
    return "; ".join(parts)


def _work(want: Want) -> str:
    if not want.pieces:
        return "no work"
    jobs = round(sum(piece.jobs for piece in want.pieces))
    return f"{jobs:,} {_jobs(jobs)}, {want.work_seconds:,.0f} s of one consumer's time"


def _rule(want: Want, pool: Pool, budget: Budget) -> str | None:
    due = "" if want.due_seconds is None else f" the deadline in {span(want.due_seconds)}"
    wait = span(want.wait_seconds or 0.0)
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
            return None
        case "idle":
            return f"the surplus leaves in {wait}" if want.wait_seconds is not None else None
        case "minimum":
            return f"min is {pool.minimum}"
        case "maximum":
            return None if pool.devices is not None else f"max is {pool.maximum}"
        case _:
            return _short(budget)


def _short(budget: Budget) -> str:
    limits = [(budget.per_hour, "an hour"), (budget.per_month, "a month")]
    told = " and ".join(f"{amount:,.2f} {unit}" for amount, unit in limits if amount is not None)
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
