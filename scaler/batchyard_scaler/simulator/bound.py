"""The clairvoyant bound: what the cheapest fleet would have cost that knew everything beforehand.

A linear program, solved by HiGHS. In each step: on-demand and spot replicas, what was started, and for each class of
deadlines the work served and the work waiting; price × replica-hours plus the starts' cold seconds are minimised. It
is a bound and no plan: replicas may be fractions, work that arrives within a step may be served from its beginning and
until the end of the step in which it is due, and spot has in each step the most nodes that it had in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from batchyard.errors import BatchyardError
from batchyard.spot_trace import Spot
from batchyard_scaler.policy.records import Pool
from batchyard_scaler.simulator.trace import Floats, Trace

HOUR = 3600.0
CLASSES = 6
"""Deadline spans that are told apart; more are merged into the next longer one."""


class Unbounded(BatchyardError):
    """No fleet within the limits of the pools meets every deadline of a trace."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The least that any fleet could have cost that finishes every job by its deadline."""

    cost: float
    """In dollars, or replica-hours where a price is not known."""
    replicas: Mapping[str, Floats]
    """By pool and step."""
    step_seconds: float


def bound(trace: Trace, *, pools: Sequence[Pool], spot: Spot | None = None, step_seconds: float = 300.0) -> Bound:
    """Solve for a trace. Every pool is taken to serve all of its models; spot pools, tolerant work alone.

    Raises Unbounded where even all replicas together could not meet the deadlines.
    """
    classes = _classes(trace, step_seconds)
    steps = len(classes[0].arriving)
    is_priced = all(pool.price_per_hour is not None for pool in pools)
    program = _Program(steps=steps, step_seconds=step_seconds, is_priced=is_priced)
    on_demand = [pool for pool in pools if pool.capacity == "on_demand"]
    spots = [pool for pool in pools if pool.capacity == "spot"]
    replicas = {
        pool.name: program.replicas(pool, most=_available(pool, spot or {}, steps, step_seconds)) for pool in pools
    }
    served = [program.served(work) for work in classes]
    capacity = [(replicas[pool.name], pool.speed * step_seconds) for pool in on_demand]
    firm = [at for at, work in zip(served, classes, strict=True) if not work.is_tolerant]
    if firm and spots:
        program.within(firm, capacity)
    program.within(served, capacity + [(replicas[pool.name], pool.speed * step_seconds) for pool in spots])
    cost, values = program.solve()
    return Bound(
        cost=cost,
        replicas={name: values[at : at + steps] for name, at in replicas.items()},
        step_seconds=step_seconds,
    )


@dataclass(frozen=True, kw_only=True)
class _Work:
    """The work of one lane and span of deadlines."""

    is_tolerant: bool
    arriving: Floats
    """Seconds of work by step."""
    due: Floats
    """By step: what must be served by its end."""


def _classes(trace: Trace, step_seconds: float) -> list[_Work]:
    """By lane and span of deadlines in steps; spans are rounded up, so that nothing is due too early."""
    last = int(trace.seconds // step_seconds) + 1
    span = np.floor(trace.due_at / step_seconds) - np.floor(trace.arrive_at / step_seconds)
    span = np.where(np.isfinite(span), span, last)
    limits = np.unique(np.quantile(span, np.linspace(0, 1, CLASSES + 1)[1:], method="higher"))
    grouped = limits[np.searchsorted(limits, span)] if len(np.unique(span)) > CLASSES + 1 else span
    arrive = np.floor(trace.arrive_at / step_seconds).astype(np.int64)
    steps = max(last, int((arrive + grouped).max()) + 1)
    found = []
    for is_tolerant in (False, True):
        for length in np.unique(grouped):
            mine = (grouped == length) & (trace.is_tolerant == is_tolerant)
            if mine.any():
                arriving = np.bincount(arrive[mine], weights=trace.work_seconds[mine], minlength=steps)
                due = np.concatenate([np.zeros(int(length)), arriving])[:steps]
                found.append(_Work(is_tolerant=is_tolerant, arriving=arriving.astype(np.float64), due=due))
    return found


def _available(pool: Pool, spot: Spot, steps: int, step_seconds: float) -> Floats:
    """The most replicas that the pool could have in each step."""
    zones = [spot[zone.name] for zone in pool.zones if zone.name in spot]
    if not zones:
        return np.full(steps, float(pool.maximum))
    total = np.zeros(steps)
    for zone in zones:
        most, nodes, index = np.zeros(steps), 0, 0
        at, change = zone.change(0)
        for step in range(steps):
            highest = nodes
            while at < (step + 1) * step_seconds:
                nodes += change
                highest = max(highest, nodes)
                index += 1
                at, change = zone.change(index)
            most[step] = highest
        total += most
    limited: Floats = np.minimum(total, pool.maximum)
    return limited


class _Program:
    """The linear program as it is put together. A block is one variable a step; named by its first column."""

    def __init__(self, *, steps: int, step_seconds: float, is_priced: bool) -> None:
        self._steps = steps
        self._step_seconds = step_seconds
        self._is_priced = is_priced
        self._costs: list[Floats] = []
        self._least: list[Floats] = []
        self._most: list[Floats] = []
        self._rows: list[tuple[list[tuple[int, sparse.csr_array]], Floats]] = []
        """Blocks with their matrices, whose sum is at most a number a step."""
        self._same = sparse.eye_array(steps, format="csr")
        self._before = sparse.eye_array(steps, k=-1, format="csr")

    def replicas(self, pool: Pool, *, most: Floats) -> int:
        """Replicas of a pool, and what they and their starts cost."""
        price = pool.price_per_hour or 0.0 if self._is_priced else 1.0
        steps = self._steps
        least = np.minimum(float(pool.minimum), most)
        there = self._block(np.full(steps, price * self._step_seconds / HOUR), least=least, most=most)
        started = self._block(np.full(steps, price * pool.cold_start_seconds / HOUR))
        self._rows.append(
            ([(there, self._same - self._before), (started, -self._same)], np.zeros(steps)),
        )
        return there

    def served(self, work: _Work) -> int:
        """Work served until each step's end: between what was due and what had arrived by then, and never less."""
        at = self._block(np.zeros(self._steps), least=np.cumsum(work.due), most=np.cumsum(work.arriving))
        self._rows.append(([(at, self._before - self._same)], np.zeros(self._steps)))
        return at

    def within(self, served: Sequence[int], capacity: Sequence[tuple[int, float]]) -> None:
        """What is served in a step fits into the capacity."""
        in_step = self._same - self._before
        blocks = [(at, in_step) for at in served] + [(at, -each * self._same) for at, each in capacity]
        self._rows.append((blocks, np.zeros(self._steps)))

    def solve(self) -> tuple[float, Floats]:
        columns = len(self._costs)
        matrix = sparse.block_array(
            [[dict(blocks).get(index * self._steps) for index in range(columns)] for blocks, _ in self._rows],
            format="csr",
        )
        found = linprog(
            np.concatenate(self._costs),
            A_ub=matrix,
            b_ub=np.concatenate([limit for _, limit in self._rows]),
            bounds=np.column_stack([np.concatenate(self._least), np.concatenate(self._most)]),
            method="highs",
        )
        if not found.success:
            raise Unbounded(f"No fleet within the pools' limits meets every deadline of this trace: {found.message}")
        return float(found.fun), found.x

    def _block(self, cost: Floats, *, least: Floats | None = None, most: Floats | None = None) -> int:
        at = len(self._costs) * self._steps
        self._costs.append(cost)
        self._least.append(np.zeros(self._steps) if least is None else least)
        self._most.append(np.full(self._steps, math.inf) if most is None else most)
        return at
