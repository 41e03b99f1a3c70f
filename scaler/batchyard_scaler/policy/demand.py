"""How many replicas work asks for, by the deadline that asks for the most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from batchyard_scaler.policy.records import Pool
from batchyard_scaler.policy.work import TRIFLE_SECONDS, Capacity, Piece, drain_seconds

WORTH_A_START = 0.25
"""A replica that is started for a deadline has at least this part of its start's time left to work: below it, one
start after the other would be paid for a few seconds' work each."""


class Need(NamedTuple):
    """So many replicas, because of work due in so many seconds."""

    replicas: int
    due_seconds: float | None = None


def lacking(pieces: Sequence[Piece], capacity: Capacity, *, pool: Pool, is_eager: bool = False) -> Need:
    """How many replicas to start so that, with what there is, all work is done by its deadline.

    The demand bound: until each deadline the work due by then, less what those that are ready or starting do, over the
    time that is left after a start. What comes too late for a start is wanted within `drain_seconds`, as is everything
    where `is_eager`.
    """
    horizon = drain_seconds(pool)
    need = Need(0)
    total = jobs = 0.0
    by_horizon = jobs_by_horizon = 0.0
    is_late = False
    for piece in pieces:
        total += piece.work_seconds
        jobs += piece.jobs
        if piece.due_seconds <= horizon:
            by_horizon, jobs_by_horizon = total, jobs
        lack = total - capacity.by(piece.due_seconds)
        if lack <= TRIFLE_SECONDS:
            continue
        more = _starts(lack, each=total / jobs, run_seconds=piece.due_seconds - pool.cold_start_seconds, pool=pool)
        if more is None:
            is_late = True
        elif more > need.replicas:
            need = Need(more, piece.due_seconds if piece.has_deadline else None)
    if is_eager:
        by_horizon, jobs_by_horizon = total, jobs
    if (is_late or is_eager) and (lack := by_horizon - capacity.by(horizon)) > TRIFLE_SECONDS:
        each = by_horizon / jobs_by_horizon
        run = max(horizon - pool.cold_start_seconds, each / pool.speed)
        more = _starts(lack, each=each, run_seconds=run, pool=pool) or 0
        if more > need.replicas:
            need = Need(more)
    return need


def fewest(pieces: Sequence[Piece], *, pool: Pool) -> Need:
    """How many replicas that are ready would do: what a pool may shrink to."""
    need = Need(0)
    total = jobs = 0.0
    for piece in pieces:
        total += piece.work_seconds
        jobs += piece.jobs
        each = total / jobs
        rounds = max(1, math.floor(piece.due_seconds * pool.speed / each))
        enough = math.ceil(total / (rounds * each) - TRIFLE_SECONDS)
        if enough > need.replicas:
            need = Need(enough, piece.due_seconds if piece.has_deadline else None)
    return need


def soonest_useful(pool: Pool, pieces: Sequence[Piece]) -> float:
    """By when work must be due at the earliest for a replica that is started now to do any of it in time."""
    jobs = sum(piece.jobs for piece in pieces)
    each = sum(piece.work_seconds for piece in pieces) / jobs / pool.speed
    return pool.cold_start_seconds + max(each, WORTH_A_START * pool.cold_start_seconds)


def _starts(lack: float, *, each: float, run_seconds: float, pool: Pool) -> int | None:
    """How many do `lack` seconds of work in jobs of `each`, a job being one replica's; None: too late for a start."""
    rounds = math.floor(run_seconds * pool.speed / each + TRIFLE_SECONDS)
    if rounds < 1 or run_seconds < WORTH_A_START * pool.cold_start_seconds:
        return None
    return max(1, math.ceil(lack / (rounds * each) - TRIFLE_SECONDS))
