"""Work to be done by certain times, as pieces in the order of their deadlines, and what capacity leaves undone."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import attrgetter
from typing import NamedTuple, Protocol

from batchyard_scaler.policy.records import Demand, Due, Fleet, Pool

PRIOR_MARGIN = 2.0
"""Work whose model's speed is only guessed counts so many times."""
RUNNING_DONE = 0.5
"""Of a job that runs, so much is done on average; the most urgent ones run."""
PAYBACK = 4.0
"""Work without a deadline is worth another replica when it keeps that busy so many times as long as its start takes."""
SHORTEST_DRAIN_SECONDS = 10.0
TRIFLE_SECONDS = 1e-6
"""Below it, work is a rounding error."""


class Piece(NamedTuple):
    """Work that is due at one time and that the same pools may do."""

    due_seconds: float
    """From now, the earliest that it may be."""
    work_seconds: float
    jobs: float
    servers: frozenset[str]
    """Names of the pools that may do it."""
    may_wait: bool = True
    """For the latest safe start: nobody waits for it, and its size is known."""
    has_deadline: bool = True
    is_forecast: bool = False
    value: float = 1.0


by_deadline = attrgetter("due_seconds")


class Capacity(Protocol):
    """What replicas can do."""

    def by(self, seconds: float) -> float:
        """Work in seconds that they do from now until then."""
        ...


class Replicas:
    """The capacity of some that are ready and some that will be."""

    def __init__(self, ready: int, starting: Iterable[float] = (), *, speed: float = 1.0) -> None:
        self._ready = ready
        self._starting = sorted(starting)
        self._waited = [0.0, *accumulate(self._starting)]
        """For the first so many, until each is ready."""
        self._speed = speed

    def by(self, seconds: float) -> float:
        if seconds <= 0:
            return 0.0
        there = bisect_right(self._starting, seconds)
        return ((self._ready + there) * seconds - self._waited[there]) * self._speed


class Spare:
    """What some capacity has left beside pieces that it does first."""

    def __init__(self, capacity: Capacity, taken: Sequence[Piece]) -> None:
        self._capacity = capacity
        self._dues = [piece.due_seconds for piece in taken]
        self._taken = [0.0]
        for piece in taken:
            self._taken.append(self._taken[-1] + piece.work_seconds)
        self._later = [math.inf] * (len(taken) + 1)
        for index in range(len(taken) - 1, -1, -1):
            spare = capacity.by(taken[index].due_seconds) - self._taken[index + 1]
            self._later[index] = min(self._later[index + 1], spare)

    def by(self, seconds: float) -> float:
        index = bisect_right(self._dues, seconds)
        return max(0.0, min(self._capacity.by(seconds) - self._taken[index], self._later[index]))


def drain_seconds(pool: Pool) -> float:
    """By when work without a deadline, or too late for its own, should be done; on spot all work, and sooner where
    jobs are due sooner: what a preemption leaves behind must be done in what is left of their slack."""
    drain = (1 + PAYBACK) * pool.cold_start_seconds
    if pool.capacity == "spot" and pool.usual_slack_seconds is not None:
        drain = min(drain, max(1.5 * pool.cold_start_seconds, pool.usual_slack_seconds / 2))
    return max(SHORTEST_DRAIN_SECONDS, drain)


def pieces_of(fleet: Fleet, pools: Sequence[Pool]) -> list[Piece]:
    """The work that these pools may do, merged and in the order of its deadlines."""
    serving: dict[str, list[Pool]] = {}
    for pool in pools:
        for model in pool.models:
            serving.setdefault(model, []).append(pool)
    merged: dict[_Key, list[float]] = {}
    for demand in fleet.demands:
        able = [
            pool
            for pool in serving.get(demand.model, ())
            if pool.maximum and (pool.capacity == "on_demand" or demand.is_tolerant)
        ]
        if able:
            _merge(merged, demand, able, step_seconds=fleet.due_step_seconds)
    pieces = [Piece(key[0], work, jobs, *key[1:], value / jobs) for key, (work, jobs, value) in merged.items()]
    return sorted(pieces, key=by_deadline)


_Key = tuple[float, frozenset[str], bool, bool, bool]
"""Of a piece: when it is due, who may do it, whether it may wait, has a deadline, is a forecast."""


def _merge(merged: dict[_Key, list[float]], demand: Demand, able: Sequence[Pool], *, step_seconds: float) -> None:
    """Add one queue's work: its jobs and, with the first of them, one swap to its model."""
    servers = frozenset(pool.name for pool in able)
    margin = PRIOR_MARGIN if demand.is_prior else 1.0
    done = RUNNING_DONE * _running_seconds(demand)
    swap = min(pool.swap_seconds for pool in able)
    slowest = max(drain_seconds(pool) for pool in able)
    is_patient = not demand.is_interactive and not demand.is_prior
    for dues, is_forecast in ((demand.due, False), (demand.forecast, True)):
        for due in dues:
            if not due.jobs:
                continue
            has_deadline = math.isfinite(due.in_seconds)
            at = _at(due, step_seconds=step_seconds) if has_deadline else slowest
            work = max(due.work_seconds, TRIFLE_SECONDS * due.jobs)
            done_here = min(done, RUNNING_DONE * work)
            done -= done_here
            key = (at, servers, has_deadline and is_patient, has_deadline, is_forecast)
            entry = merged.setdefault(key, [0.0, 0.0, 0.0])
            entry[0] += (work - done_here) * margin + swap
            entry[1] += due.jobs
            entry[2] += due.jobs * demand.value
            swap = 0.0


def rest_of(pieces: Sequence[Piece], capacity: Capacity, *, kept_until_seconds: float = -math.inf) -> list[Piece]:
    """What is not done by its deadline where the earliest deadline goes first. Work due before `kept_until_seconds` is
    never left: it is done late, and other work is left in its place."""
    left = []
    total = missed = 0.0
    for piece in pieces:
        total += piece.work_seconds
        lack = min(piece.work_seconds, total - capacity.by(piece.due_seconds) - missed)
        if lack > TRIFLE_SECONDS and piece.due_seconds >= kept_until_seconds:
            missed += lack
            left.append(_part(piece, lack / piece.work_seconds))
    return left


def apart_from_late(
    pieces: Sequence[Piece], capacity: Capacity, *, until_seconds: float
) -> tuple[list[Piece], list[Piece]]:
    """What this capacity may keep, and what others should help with of the work due before `until_seconds`: no start
    can save that, but what is not done even then delays all that comes after it. It is wanted as long again later."""
    late = [piece for piece in pieces if piece.due_seconds < until_seconds]
    total = sum(piece.work_seconds for piece in late)
    lack = total - capacity.by(until_seconds)
    if lack <= TRIFLE_SECONDS:
        return list(pieces), []
    kept = [_part(piece, 1 - lack / total) for piece in late if lack < total]
    helped = [_part(piece, lack / total)._replace(due_seconds=2 * until_seconds) for piece in late]
    return kept + list(pieces[len(late) :]), helped


def _part(piece: Piece, share: float) -> Piece:
    return piece._replace(work_seconds=piece.work_seconds * share, jobs=piece.jobs * share)


def less(pieces: Sequence[Piece], some: Iterable[Piece]) -> list[Piece]:
    """The pieces without some parts of them."""
    taken = {(piece.due_seconds, *piece[3:]): piece for piece in some}
    left = []
    for piece in pieces:
        gone = taken.get((piece.due_seconds, *piece[3:]))
        if gone is None:
            left.append(piece)
        elif (work := piece.work_seconds - gone.work_seconds) > TRIFLE_SECONDS:
            left.append(piece._replace(work_seconds=work, jobs=piece.jobs - gone.jobs))
    return left


def _at(due: Due, *, step_seconds: float) -> float:
    """The earliest that such work may be due; of a step that has begun, half of what is left of it."""
    return due.in_seconds - min(step_seconds, max(0.0, due.in_seconds) / 2)


def _running_seconds(demand: Demand) -> float:
    """All the work of the jobs that run, as jobs of the mean size."""
    jobs = sum(due.jobs for due in demand.due)
    return sum(due.work_seconds for due in demand.due) * demand.running_jobs / jobs if jobs else 0.0
