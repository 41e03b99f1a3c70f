"""What `scheduling` will choose, foretold from the sums of the lines. Pure.

Only the dispatcher knows whose turn it is and what the reserve has to its credit, so a job is taken to find its
priority halfway through the round of turns in which it goes. Jobs are taken to cost what they do on average in their
line, and urgency is left out.

A position is right to one and a half rounds of turns of the job's own priority (`TURN_JOBS` jobs for each of its
tenants, times the weight) and one turn of the weightiest tenant; while a higher priority has jobs, to 1 + 9 n times
that, where n is the number of priorities below the highest: for one job of theirs, nine go above.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from batchyard.scheduling import LEAST_WEIGHT, RESERVED, TURN_JOBS

FRONT_MARGIN = 1.25
"""Candidates of a line that are looked at for each that is likely to go."""


class LineLoad(NamedTuple):
    """One line of a queue, as the backlog knows it; at least one job."""

    tenant_id: int
    priority: int
    weight: float
    jobs: int
    cost: int
    """Of all of them."""


def jobs_before(lines: Iterable[LineLoad], *, tenant_id: int, priority: int, own: int) -> float:
    """How many jobs go before the one that has `own` jobs before it in its line, which must be among the lines.

    O(lines). Fewer than `own` never go before it.
    """
    levels = _levels(lines)
    mine = next(line for line in levels[priority].lines if line.tenant_id == tenant_id)
    turn = levels[priority].quantum * _weight(mine)
    rounds = math.ceil((own + 1) * _mean_cost(mine) / turn) - 0.5
    served = levels[priority].served(rounds * levels[priority].quantum)
    beside = sum(cost / _mean_cost(line) for line, cost in served if line is not mine)
    spent = _spend(levels, worth={priority: 1.0}, until=sum(cost for _, cost in served))
    elsewhere = sum(cost / levels[other].mean_cost for other, cost in spent.items() if other != priority)
    return own + beside + elsewhere


def front_jobs(lines: Iterable[LineLoad], *, jobs: int) -> dict[tuple[int, int], int]:
    """(tenant, priority) → how many jobs from the front of the line to look at, to choose the next `jobs` of a queue.

    What is likely to go and a little more, with room for a whole turn; more than the line holds where it is likely to
    be used up, so that its end is seen. O(lines).
    """
    levels = _levels(lines)
    spent = _spend(levels, worth={priority: 1 / level.mean_cost for priority, level in levels.items()}, until=jobs)
    wanted: dict[tuple[int, int], int] = {}
    for priority, level in levels.items():
        for line, cost in level.served(level.rounds_for(spent[priority])):
            likely = (FRONT_MARGIN * cost + level.quantum * _weight(line)) / _mean_cost(line)
            wanted[line.tenant_id, priority] = min(math.ceil(likely), line.jobs + 1, jobs + 1)
    return wanted


class _Level:
    """The lines of one priority, which take turns. Its rounds are measured in cost for a tenant of weight 1."""

    def __init__(self, lines: Sequence[LineLoad]) -> None:
        self.lines = lines
        self.cost = sum(map(_cost, lines))
        self.mean_cost = self.cost / sum(line.jobs for line in lines)
        self.quantum = TURN_JOBS * self.mean_cost

    def served(self, rounds: float) -> list[tuple[LineLoad, float]]:
        """What each line has had after so many rounds."""
        return [(line, min(_cost(line), rounds * _weight(line))) for line in self.lines]

    def rounds_for(self, cost: float) -> float:
        """How many rounds it takes to serve so much."""
        weight = sum(map(_weight, self.lines))
        for line in sorted(self.lines, key=lambda line: _cost(line) / _weight(line)):
            rounds = cost / weight
            if _cost(line) >= rounds * _weight(line):
                return rounds
            cost -= _cost(line)
            weight -= _weight(line)
        return math.inf


def _levels(lines: Iterable[LineLoad]) -> dict[int, _Level]:
    by_priority: dict[int, list[LineLoad]] = {}
    for line in lines:
        by_priority.setdefault(line.priority, []).append(line)
    return {priority: _Level(members) for priority, members in by_priority.items()}


def _spend(levels: Mapping[int, _Level], *, worth: Mapping[int, float], until: float) -> dict[int, float]:
    """What each priority has had, in cost, once that is `worth` so much in all, or everything is gone.

    The highest that has jobs left gets nine tenths, the lower ones equal parts of the rest.
    """
    spent = dict.fromkeys(levels, 0.0)
    left = {priority: level.cost for priority, level in levels.items()}
    while left and until > 0:
        shares = _shares(left)
        gain = sum(share * worth.get(priority, 0.0) for priority, share in shares.items())
        step = min(left[priority] / share for priority, share in shares.items())
        if gain > 0:
            step = min(step, until / gain)
        until -= step * gain
        for priority, share in shares.items():
            spent[priority] += step * share
        left = {
            priority: rest
            for priority, share in shares.items()
            if (rest := left[priority] - step * share) > 1e-9 * spent[priority]
        }
        if not worth.keys() & left.keys():
            break
    return spent


def _shares(left: Iterable[int]) -> dict[int, float]:
    highest, *lower = sorted(left, reverse=True)
    if not lower:
        return {highest: 1.0}
    return {highest: 1 - RESERVED, **dict.fromkeys(lower, RESERVED / len(lower))}


def _cost(line: LineLoad) -> float:
    """Scheduling takes a job without cost for one of cost 1."""
    return float(max(line.cost, line.jobs))


def _mean_cost(line: LineLoad) -> float:
    return _cost(line) / line.jobs


def _weight(line: LineLoad) -> float:
    return max(line.weight, LEAST_WEIGHT)
