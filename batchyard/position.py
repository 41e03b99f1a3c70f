"""How many jobs go before a waiting one: what `scheduling` will choose, estimated from sums. Pure.

Only the dispatcher knows whose turn it is and what the reserve has to its credit, so a job is taken to find its
priority halfway through the round of turns in which it goes. Jobs are taken to cost what they do on average in their
line, and urgency is left out.

The estimate is right to one and a half rounds of turns of the job's own priority (`TURN_JOBS` jobs for each of its
tenants, times the weight) and one turn of the weightiest tenant; while a higher priority has jobs, to 1 + 9 n times
that, where n is the number of priorities below the highest: for one job of theirs, nine go above.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from batchyard.scheduling import LEAST_WEIGHT, RESERVED, TURN_JOBS


class LineLoad(NamedTuple):
    """One line of a queue, as the backlog knows it; at least one job."""

    tenant_id: int
    priority: int
    weight: float
    jobs: int
    cost: int
    """Of all of them."""


def jobs_before(lines: Sequence[LineLoad], *, tenant_id: int, priority: int, own: int) -> float:
    """How many jobs go before the one that has `own` jobs before it in its line, which must be among the lines.

    O(lines). Fewer than `own` never go before it.
    """
    levels: dict[int, list[LineLoad]] = {}
    for line in lines:
        levels.setdefault(line.priority, []).append(line)
    level = {line.tenant_id: line for line in levels[priority]}
    served = _served_in_turns(level, tenant_id=tenant_id, own=own)
    spent = _spent_by_then(
        {other: _cost(members) for other, members in levels.items()}, priority=priority, cost=sum(served.values())
    )
    beside = sum(cost * _jobs_per_cost([level[other]]) for other, cost in served.items() if other != tenant_id)
    elsewhere = sum(cost * _jobs_per_cost(levels[other]) for other, cost in spent.items() if other != priority)
    return own + beside + elsewhere


def _served_in_turns(level: Mapping[int, LineLoad], *, tenant_id: int, own: int) -> dict[int, float]:
    """What each tenant of a priority has had, in cost, halfway through the round in which the job goes."""
    mine = level[tenant_id]
    quantum = TURN_JOBS / _jobs_per_cost(list(level.values()))
    rounds = math.ceil((own + 1) / _jobs_per_cost([mine]) / (quantum * _weight(mine))) - 0.5
    return {tenant: min(_cost([line]), rounds * quantum * _weight(line)) for tenant, line in level.items()}


def _spent_by_then(left: dict[int, float], *, priority: int, cost: float) -> dict[int, float]:
    """What each priority has had once `priority` has had `cost`, given what each has: the highest nine tenths, the
    lower ones equal parts of the rest, until one of them runs out."""
    spent = dict.fromkeys(left, 0.0)
    while priority in left:
        lower = len(left) - 1
        highest = max(left)
        shares = {other: (1 - RESERVED if lower else 1.0) if other == highest else RESERVED / lower for other in left}
        until_one_is_empty = min(left[other] / shares[other] for other in left)
        until_then = (cost - spent[priority]) / shares[priority]
        step = min(until_one_is_empty, until_then)
        for other in left:
            spent[other] += step * shares[other]
        if until_then <= until_one_is_empty:
            return spent
        left = {other: rest for other in left if (rest := left[other] - step * shares[other]) > 1e-9 * spent[other]}
    return spent


def _cost(lines: Sequence[LineLoad]) -> float:
    """Scheduling takes a job without cost for one of cost 1."""
    return float(sum(max(line.cost, line.jobs) for line in lines))


def _jobs_per_cost(lines: Sequence[LineLoad]) -> float:
    return sum(line.jobs for line in lines) / _cost(lines)


def _weight(line: LineLoad) -> float:
    return max(line.weight, LEAST_WEIGHT)
