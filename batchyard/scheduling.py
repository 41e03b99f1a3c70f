"""The order of a queue: which waiting jobs go next. Pure; used by the dispatcher and by the consumers' idle claim.

1. Priority: of the capacity, in cost, the highest priority that has jobs gets nine tenths and all lower ones together
   the last tenth, in equal parts. What one does not need the others use.
2. Within a priority, tenants in turn by deficit round robin: each gets cost in proportion to its weight.
3. Within a tenant's share, jobs whose latest safe start is near, the most pressing first; then by arrival.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchyard.store.base import Candidate, Line

RESERVED = 0.1
"""Part of the capacity that lower priorities get while higher ones have jobs."""

TURN_JOBS = 16
"""A turn's worth of jobs of mean cost, for a tenant of weight 1: how finely tenants are interleaved."""

LEAST_WEIGHT = 1e-3


@dataclass
class FairShare:
    """What fairness remembers of one queue from call to call. Owned by the thread that calls `choose`."""

    deficits: dict[tuple[int, int], float] = field(default_factory=dict)
    """(priority, tenant) → cost that it was granted in its last turn and has not used."""
    turns: dict[int, tuple[int, bool]] = field(default_factory=dict)
    """Priority → the tenant whose turn was last, and whether the end of the call cut that turn short."""
    reserve: float = 0.0
    """Cost that the lower priorities have to their credit."""
    lower_spent: dict[int, float] = field(default_factory=dict)
    """Lower priority → cost spent on it out of the reserve, beyond the one that got least."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The next jobs of a queue, in order."""

    ids: list[int]
    cost: int
    cursors: dict[tuple[int, int], int]
    """(tenant, priority) → the id up to which the line needs no further look: chosen, or known to be ticketed."""
    skipped: list[int]
    """Jobs in sight that were passed over because their submitter has ticketed them."""
    is_complete: bool
    """Whether nothing is left in any line, as far as it was shown or beyond."""


def choose(
    lines: Sequence[Line],
    *,
    jobs: int,
    share: FairShare | None = None,
    taken: Set[int] = frozenset(),
    ticketed_since_ms: int | None = None,
) -> Choice:
    """Choose up to `jobs` next jobs from the fronts of a queue's lines, as `JobStore.head` shows them.

    Choosing stops where a line is used up that may go on, for what goes next is not in sight; call again with the
    `cursors` then. Jobs in `taken`, and jobs whose submitter ticketed them after `ticketed_since_ms`, are passed over.
    """
    fronts = [_Front(line, taken=taken, ticketed_since_ms=ticketed_since_ms) for line in lines]
    ids = _pick(fronts, jobs=jobs, share=share or FairShare())
    return Choice(
        ids=ids,
        cost=sum(front.cost_used for front in fronts),
        cursors={front.key: cursor for front in fronts if (cursor := front.cursor) is not None},
        skipped=[job_id for front in fronts for job_id in front.skipped],
        is_complete=all(front.is_empty and not front.has_more for front in fronts),
    )


class _Front:
    """The front of one line while it is being used up: ids in the order in which they go, and their running cost."""

    def __init__(self, line: Line, *, taken: Set[int], ticketed_since_ms: int | None) -> None:
        self.key = (line.tenant_id, line.priority)
        self.tenant_id = line.tenant_id
        self.priority = line.priority
        self.weight = max(line.weight, LEAST_WEIGHT)
        self.has_more = line.has_more
        self._last_id = line.candidates[-1].id if line.candidates else None
        urgent = _open(line.urgent, taken=taken, ticketed_since_ms=ticketed_since_ms)
        ahead = {candidate.id for candidate in urgent}
        rest = _open(line.candidates, taken=taken, ticketed_since_ms=ticketed_since_ms)
        if ahead:
            rest = [candidate for candidate in rest if candidate.id not in ahead]
        self.skipped = _skipped(line.candidates, taken=taken, ticketed_since_ms=ticketed_since_ms)
        in_order = [*urgent, *rest]
        self._urgent = len(urgent)
        self.ids = [candidate.id for candidate in in_order]
        self.costs = list(accumulate([candidate.cost if candidate.cost > 0 else 1 for candidate in in_order]))
        self.used = 0

    @property
    def is_empty(self) -> bool:
        return self.used == len(self.ids)

    @property
    def cost_used(self) -> int:
        return self.costs[self.used - 1] if self.used else 0

    @property
    def next_cost(self) -> int:
        return self.costs[self.used] - self.cost_used

    @property
    def cursor(self) -> int | None:
        if self.is_empty:
            return self._last_id
        # The urgent ones stand out of order: they move no cursor, and are all used before any of the rest is.
        return self.ids[self.used - 1] if self.used > self._urgent else None

    def take(self, *, cost: float, jobs: int) -> tuple[list[int], int]:
        """The next jobs that fit into `cost`, at most `jobs` of them, and what they cost."""
        before = self.cost_used
        end = min(bisect_right(self.costs, before + cost, self.used), self.used + jobs)
        ids = self.ids[self.used : end]
        self.used = end
        return ids, self.cost_used - before


def _open(candidates: Sequence[Candidate], *, taken: Set[int], ticketed_since_ms: int | None) -> Sequence[Candidate]:
    """Those that nobody has ticketed."""
    if ticketed_since_ms is None:
        return [c for c in candidates if c.id not in taken] if taken else candidates
    return [
        c
        for c in candidates
        if (c.ticketed_at_ms is None or c.ticketed_at_ms <= ticketed_since_ms) and c.id not in taken
    ]


def _skipped(candidates: Sequence[Candidate], *, taken: Set[int], ticketed_since_ms: int | None) -> list[int]:
    if ticketed_since_ms is None:
        return []
    return [
        c.id
        for c in candidates
        if c.ticketed_at_ms is not None and c.ticketed_at_ms > ticketed_since_ms and c.id not in taken
    ]


def _pick(fronts: Sequence[_Front], *, jobs: int, share: FairShare) -> list[int]:
    levels = {priority: _Level(priority, members, share) for priority, members in _by_priority(fronts).items()}
    ids: list[int] = []
    while len(ids) < jobs and levels:
        top = max(levels)
        lower = [priority for priority in levels if priority != top]
        if not lower:
            share.reserve = 0.0
        priority = _poorest(lower, share) if lower and share.reserve > 0 else top
        level = levels[priority]
        taken, cost = level.turn(jobs=jobs - len(ids))
        ids += taken
        if priority == top:
            share.reserve += cost * RESERVED / (1 - RESERVED)
        else:
            share.reserve -= cost
            share.lower_spent[priority] += cost
        if level.is_blind:
            break
        if level.is_empty:
            del levels[priority]
    return ids


def _poorest(lower: Sequence[int], share: FairShare) -> int:
    """The lower priority that has got least so far; one that was absent begins level with it."""
    least = min((share.lower_spent[priority] for priority in lower if priority in share.lower_spent), default=0.0)
    share.lower_spent = {priority: share.lower_spent.get(priority, least) - least for priority in lower}
    return min(lower, key=lambda priority: (share.lower_spent[priority], -priority))


def _by_priority(fronts: Sequence[_Front]) -> dict[int, list[_Front]]:
    levels: dict[int, list[_Front]] = {}
    for front in fronts:
        if not front.is_empty or front.has_more:
            levels.setdefault(front.priority, []).append(front)
    return levels


class _Level:
    """The lines of one priority, one per tenant, taking turns."""

    def __init__(self, priority: int, fronts: list[_Front], share: FairShare) -> None:
        self._priority = priority
        self._fronts = sorted(fronts, key=lambda front: front.tenant_id)
        self._share = share
        shown = sum(len(front.ids) for front in fronts)
        self._quantum = TURN_JOBS * sum(front.costs[-1] for front in fronts if front.costs) / max(shown, 1)
        self.is_blind = any(front.is_empty and front.has_more for front in fronts)
        """A line is used up as far as it was shown, and goes on out of sight."""
        self.was_cut = False
        """The last turn ended with the call, or with what was in sight, not with what the tenant was granted."""
        self._next = self._start()
        self._drop_absent()

    @property
    def is_empty(self) -> bool:
        return not self._fronts

    def turn(self, *, jobs: int) -> tuple[list[int], int]:
        """Give the next tenant its turn; returns ids and cost, at least one job unless the level is blind."""
        if self.is_blind:
            return [], 0
        share, priority = self._share, self._priority
        while True:
            self._next %= len(self._fronts)
            front = self._fronts[self._next]
            key = (priority, front.tenant_id)
            resumed = share.turns.get(priority) == (front.tenant_id, True)
            deficit = share.deficits.get(key, 0.0) + (0.0 if resumed else self._quantum * front.weight)
            ids, cost = front.take(cost=deficit, jobs=jobs)
            if front.is_empty:
                self.was_cut = front.has_more
            else:
                self.was_cut = len(ids) == jobs and front.next_cost <= deficit - cost
            share.deficits[key] = deficit - cost
            share.turns[priority] = (front.tenant_id, self.was_cut)
            self._leave(front, key)
            if ids:
                return ids, cost
            self._skip_barren_rounds()

    def _leave(self, front: _Front, key: tuple[int, int]) -> None:
        if front.is_empty and front.has_more:
            self.is_blind = True
        elif front.is_empty:
            # Who has nothing waiting saves nothing up.
            self._share.deficits.pop(key, None)
            self._fronts.pop(self._next)
        elif not self.was_cut:
            self._next += 1

    def _skip_barren_rounds(self) -> None:
        """Where no tenant can afford its next job, grant at once all the rounds until one of them can."""
        rounds = min(self._rounds_needed(front) for front in self._fronts)
        if rounds > 1:
            for front in self._fronts:
                key = (self._priority, front.tenant_id)
                granted = self._quantum * front.weight * (rounds - 1)
                self._share.deficits[key] = self._share.deficits.get(key, 0.0) + granted

    def _rounds_needed(self, front: _Front) -> int:
        missing = front.next_cost - self._share.deficits.get((self._priority, front.tenant_id), 0.0)
        return max(0, -int(-missing // (self._quantum * front.weight)))

    def _start(self) -> int:
        """Where the last call left off: with the tenant whose turn was cut short, else with the one after."""
        tenant_id, was_cut = self._share.turns.get(self._priority, (-1, False))
        for place, front in enumerate(self._fronts):
            if front.tenant_id > tenant_id or (was_cut and front.tenant_id == tenant_id):
                return place
        return 0

    def _drop_absent(self) -> None:
        """Forget what tenants that no longer wait had left."""
        present = {front.tenant_id for front in self._fronts}
        for priority, tenant_id in list(self._share.deficits):
            if priority == self._priority and tenant_id not in present:
                del self._share.deficits[priority, tenant_id]
