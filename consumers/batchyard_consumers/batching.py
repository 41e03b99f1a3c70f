"""Which jobs make the next batch. Pure: no clock, no lock, no thread of its own.

A `Pool` keeps the prepared jobs of one version sorted by cost. A batch is a run of neighbours in that order, so that
padding every item to the longest wastes little: `n * longest <= budget`, and a run whose padding costs more than one
batch more is cut in two. Where the run begins is decided by

1. suspects, each alone, since one of them may have ended a process;
2. age: a job older than `age_cap_seconds` goes next, so that nothing starves;
3. urgency, where the pool holds jobs of different urgency: deadlines that are near, then rank;
4. otherwise a sweep from short to long and round again, which tiles the pool without leaving gaps.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from batchyard.jobs import ClaimedJob

Entry = tuple[int, int, ClaimedJob, Any]
"""Cost, arrival (nanoseconds, unique within the pool), job, prepared item. Sorts by cost, then by arrival."""

Reason = Literal["full", "items", "outlier", "drained", "suspect"]
"""Why a batch closed: the budget; the largest number of items; more neighbours would waste more than another batch
costs; nothing more at hand; a suspect runs alone."""

PETTY_WASTE = 0.03
"""Of the budget: what a batch costs by itself, at least; so much padding is never worth another one."""
URGENT_MS = 10_000
"""A deadline nearer than this goes ahead of rank."""
_NEVER = 1 << 62


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one batch may hold."""

    budget: int
    """Padded cost; a single item above it runs alone."""
    max_jobs: int
    padded: bool = True
    """Whether every item costs as much as the longest; else a batch costs the sum of its items."""
    overhead_cost: float = 0.0
    """What a batch costs by itself, in the unit of cost: so much padding is as dear as one more batch."""


@dataclass(kw_only=True)
class Formed:
    """A batch, shortest item first."""

    entries: list[Entry]
    reason: Reason
    cost: int
    """Σ cost."""
    padded_cost: int
    """What the device computes: n * longest where items are padded."""


@dataclass
class Pool:
    """The prepared jobs of one version. Guarded by its owner's lock."""

    rank: Callable[[ClaimedJob], int]
    """Higher goes first."""
    age_cap_seconds: float = 3.0
    _entries: list[Entry] = field(default_factory=list)
    _suspects: list[Entry] = field(default_factory=list)
    _last_arrival: int = 0
    _cost: int = 0
    _kind: tuple[int, int] | None = None
    """Queue and priority that all entries share; None where they differ."""
    _has_deadlines: bool = False
    _oldest: int = _NEVER
    """No entry arrived before this."""
    _sweep: tuple[int, int] = (-1, -1)
    """Cost and arrival of the last entry that the sweep took."""

    def __len__(self) -> int:
        return len(self._entries) + len(self._suspects)

    @property
    def cost(self) -> int:
        """Σ cost of what waits."""
        return self._cost

    def add(self, jobs: Sequence[ClaimedJob], items: Sequence[Any], costs: Sequence[int], *, now_ns: int) -> None:
        """Take in prepared jobs; the three sequences run side by side."""
        if not jobs:
            return
        first = max(now_ns, self._last_arrival + 1)
        self._last_arrival = first + len(jobs) - 1
        has_suspects = self._note_kinds(jobs)
        added = list(zip(costs, range(first, first + len(jobs)), jobs, items, strict=True))
        self._cost += sum(costs)
        if has_suspects:
            self._suspects += [entry for entry in added if entry[2].suspect]
            added = [entry for entry in added if not entry[2].suspect]
            if not added:
                return
        self._oldest = min(self._oldest, first)
        self._merge(added, is_level=min(costs) == max(costs))

    def form(self, limits: Limits, *, now_ns: int, now_ms: int) -> Formed | None:
        """Take the next batch out of the pool; None where it is empty."""
        if self._suspects:
            entry = self._suspects.pop(0)
            self._cost -= entry[0]
            self._forget_when_empty()
            return Formed(entries=[entry], reason="suspect", cost=entry[0], padded_cost=entry[0])
        if not self._entries:
            return None
        anchor = self._urgent_anchor(now_ns, now_ms)
        if anchor is None:
            anchor = self._sweep_start()
            low, high, reason = self._sweep_window(anchor, limits)
        else:
            low, high, reason = _around(self._entries, anchor, limits)
        while (middle := _split(self._entries, low, high, limits)) < high:
            low, high, reason = (low, middle, "outlier") if anchor < middle else (middle, high, "outlier")
        return self._cut(low, high, reason, limits)

    def drop(self, ids: frozenset[int]) -> list[Entry]:
        """Take the named jobs out, wherever they stand."""
        dropped = [entry for entry in (*self._entries, *self._suspects) if entry[2].id in ids]
        if dropped:
            self._entries = [entry for entry in self._entries if entry[2].id not in ids]
            self._suspects = [entry for entry in self._suspects if entry[2].id not in ids]
            self._cost -= sum(entry[0] for entry in dropped)
            self._forget_when_empty()
        return dropped

    def take_all(self) -> list[Entry]:
        """Empty the pool."""
        taken = self._entries + self._suspects
        self._entries, self._suspects, self._cost = [], [], 0
        self._forget_when_empty()
        return taken

    def holds_rank_above(self, rank: int) -> bool:
        """Whether any job that waits has a higher rank."""
        if self._kind is not None:
            first = self._entries[0] if self._entries else self._suspects[0] if self._suspects else None
            return first is not None and self.rank(first[2]) > rank
        return any(self.rank(entry[2]) > rank for entry in (*self._entries, *self._suspects))

    def oldest_ns(self) -> int | None:
        """When the oldest entry arrived; a lower bound between two scans."""
        if self._suspects:
            return min(self._suspects[0][1], self._oldest)
        return self._oldest if self._entries else None

    def _note_kinds(self, jobs: Sequence[ClaimedJob]) -> bool:
        """Remember whether all that waits is of one kind; true where a suspect is among the jobs."""
        queue_id, priority = jobs[0].queue_id, jobs[0].priority
        # One pass that mostly finds nothing: jobs claimed together are mostly alike.
        others = [
            job
            for job in jobs
            if job.priority != priority or job.queue_id != queue_id or job.deadline_ms is not None or job.suspect
        ]
        is_empty = not len(self)
        if is_empty:
            self._kind = (queue_id, priority)
        elif self._kind != (queue_id, priority):
            self._kind = None
        if not others:
            return False
        if any((job.queue_id, job.priority) != (queue_id, priority) for job in others):
            self._kind = None
        self._has_deadlines = self._has_deadlines or any(job.deadline_ms is not None for job in others)
        return any(job.suspect for job in others)

    def _merge(self, added: list[Entry], *, is_level: bool) -> None:
        entries = self._entries
        # Items of one size arrive in order already; a sort would compare the whole pool for nothing.
        is_in_order = is_level and (not entries or entries[-1][0] <= added[0][0])
        entries += added
        if not is_in_order:
            entries.sort()

    def _urgent_anchor(self, now_ns: int, now_ms: int) -> int | None:
        entries = self._entries
        if now_ns - self._oldest > self.age_cap_seconds * 1e9:
            oldest = min(range(len(entries)), key=lambda i: entries[i][1])
            self._oldest = entries[oldest][1]
            if now_ns - self._oldest > self.age_cap_seconds * 1e9:
                return oldest
        if self._kind is not None and not self._has_deadlines:
            return None

        def urgency(i: int) -> tuple[int, int, int]:
            job = entries[i][2]
            due = job.deadline_ms
            near = due if due is not None and due - now_ms < URGENT_MS else _NEVER
            return near, -self.rank(job), entries[i][1]

        return min(range(len(entries)), key=urgency)

    def _sweep_start(self) -> int:
        """Past where the sweep stands; at the top it starts again."""
        start = bisect_right(self._entries, self._sweep, key=lambda entry: entry[:2])
        return start if start < len(self._entries) else 0

    def _sweep_window(self, start: int, limits: Limits) -> tuple[int, int, Reason]:
        """The run upwards from where the sweep goes on; one that reaches the top is filled up from below."""
        low, high, reason = _upwards(self._entries, start, limits)
        if high == len(self._entries) and low > 0 and reason == "drained":
            return _downwards(self._entries, low, high, limits)
        return low, high, reason

    def _cut(self, low: int, high: int, reason: Reason, limits: Limits) -> Formed:
        taken = self._entries[low:high]
        del self._entries[low:high]
        longest = taken[-1][0]
        cost = longest * len(taken) if taken[0][0] == longest else sum([entry[0] for entry in taken])
        self._sweep = taken[-1][:2]
        self._cost -= cost
        self._forget_when_empty()
        return Formed(
            entries=taken, reason=reason, cost=cost, padded_cost=longest * len(taken) if limits.padded else cost
        )

    def _forget_when_empty(self) -> None:
        if not self._entries:
            self._oldest = _NEVER
            self._sweep = (-1, -1)
            if not self._suspects:
                self._kind, self._has_deadlines = None, False


# --- runs of neighbours ---------------------------------------------------------------------------------------------


class _Run:
    """The sums over a run of neighbours, and whether one more may join."""

    __slots__ = ("count", "limits", "longest", "total")

    def __init__(self, entries: Iterable[Entry], limits: Limits) -> None:
        costs = [entry[0] for entry in entries]
        self.limits = limits
        self.count, self.longest, self.total = len(costs), max(costs), sum(costs)

    def refusal(self, cost: int) -> Reason | None:
        """Why an item of this cost may not join; None where it may."""
        if self.count >= self.limits.max_jobs:
            return "items"
        padded = max(self.longest, cost) * (self.count + 1) if self.limits.padded else self.total + cost
        return "full" if padded > self.limits.budget else None

    def join(self, cost: int) -> None:
        self.count += 1
        self.longest = max(self.longest, cost)
        self.total += cost

    def waste_with(self, cost: int) -> int:
        return max(self.longest, cost) * (self.count + 1) - self.total - cost


def _upwards(entries: list[Entry], start: int, limits: Limits) -> tuple[int, int, Reason]:
    """The longest run from `start` upwards: `[low, high)` and why it ended."""
    if entries[start][0] == entries[-1][0]:
        return _level(entries, start, limits)
    run, high = _Run(entries[start : start + 1], limits), start + 1
    while high < len(entries):
        cost = entries[high][0]
        refusal = run.refusal(cost)
        if refusal is not None:
            return start, high, refusal
        run.join(cost)
        high += 1
    return start, high, "drained"


def _level(entries: list[Entry], start: int, limits: Limits) -> tuple[int, int, Reason]:
    """The same where all that follows has one cost: no loop."""
    by_budget = max(1, limits.budget // max(1, entries[start][0]))
    at_hand = len(entries) - start
    count = min(by_budget, limits.max_jobs, at_hand)
    if count == at_hand:
        return start, start + count, "drained"
    return start, start + count, "full" if count == by_budget else "items"


def _downwards(entries: list[Entry], low: int, high: int, limits: Limits) -> tuple[int, int, Reason]:
    """Widen `[low, high)` towards shorter items."""
    run = _Run(entries[low:high], limits)
    while low > 0:
        cost = entries[low - 1][0]
        refusal = run.refusal(cost)
        if refusal is not None:
            return low, high, refusal
        run.join(cost)
        low -= 1
    return low, high, "drained"


def _around(entries: list[Entry], anchor: int, limits: Limits) -> tuple[int, int, Reason]:
    """The run around `anchor` that grows, step by step, by the neighbour that wastes less."""
    low, high = anchor, anchor + 1
    run = _Run(entries[low:high], limits)
    refusal: Reason | None = None
    while low > 0 or high < len(entries):
        shorter = entries[low - 1][0] if low > 0 else None
        longer = entries[high][0] if high < len(entries) else None
        refusal_below = "drained" if shorter is None else run.refusal(shorter)
        refusal_above = "drained" if longer is None else run.refusal(longer)
        if (
            shorter is not None
            and refusal_below is None
            and (longer is None or refusal_above is not None or run.waste_with(shorter) < run.waste_with(longer))
        ):
            run.join(shorter)
            low -= 1
        elif longer is not None and refusal_above is None:
            run.join(longer)
            high += 1
        else:
            refusal = "items" if "items" in (refusal_below, refusal_above) else "full"
            break
    return low, high, refusal or "drained"


def _split(entries: list[Entry], low: int, high: int, limits: Limits) -> int:
    """Where `[low, high)` does better as two batches: the place of the first longer item; `high` where it does not.

    The shorter ones are spared the padding up to the longest of all, for what one more batch costs.
    """
    if not limits.padded or entries[low][0] == entries[high - 1][0]:
        return high
    longest = entries[high - 1][0]
    best, place = max(limits.overhead_cost, PETTY_WASTE * limits.budget), high
    for middle in range(low + 1, high):
        saved = (middle - low) * (longest - entries[middle - 1][0])
        if saved > best:
            best, place = saved, middle
    return place
