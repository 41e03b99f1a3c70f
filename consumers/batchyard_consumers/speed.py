"""What a model costs on this device, learned from its batches: the fitted line, and the budget that follows. Pure.

`t = a * x + b`: seconds of a forward pass against its padded cost. A batch of `x` spends `a * x / (a * x + b)` of its
time on its jobs, so the budget is the smallest step that reaches `SATURATED` by the line. It climbs there by doubling,
from a single job on; later a small batch is run now and then, without which `b` could not be told any more.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

BATCHES_A_STEP = 2
"""Measurements of a step of the climb before the next: the first batch of a size costs more than all later ones."""
SATURATED = 0.97
WORTH = SATURATED / (1 - SATURATED)
"""In units of `b / a`: the cost at which a batch is saturated."""
MARGIN = 1.25
"""By how much the line must ask for another step before the budget leaves the one that it has settled on."""
FULL = 0.5
"""A batch below this share of the budget says nothing about it."""
PROBE_EVERY, PROBE_BATCHES = 64, 3
"""Full batches between two rounds of small ones, and in one of those."""
PROBE_SHARE = 8
"""A small batch holds this part of a full one: far enough from it for `b` to show, and over in no time."""
RECENT = 8
"""Samples of one size that are kept."""
OUTDATED = 2 * PROBE_EVERY + PROBE_BATCHES
"""Batches after which a sample tells of another day: the small ones of the last two rounds are at hand."""
RECOVERY = 0.05
"""Of what memory allowed, regained at each probe after the device ran out of it."""
DECAY = 0.98


@dataclass
class Line:
    """`t = a * x + b` by least squares of the relative error, through the fastest recent sample of each size.

    The fastest, since a busy machine only ever slows one down. One of each size, a power of two, so that the many
    batches of the budget's size do not drown the few small ones, where `b` shows.
    """

    _samples: dict[int, deque[tuple[int, float, float]]] = field(default_factory=dict)
    """Size → number, cost and seconds."""
    _count: int = 0
    _fit: tuple[float, float] | None = None

    def add(self, cost: float, seconds: float) -> None:
        self._count += 1
        self._samples.setdefault(math.frexp(cost)[1], deque(maxlen=RECENT)).append((self._count, cost, seconds))
        self._forget()
        self._fit = self._fitted()

    def fit(self) -> tuple[float, float] | None:
        """`(a, b)`, neither negative; None before the first sample. Any thread."""
        return self._fit

    @property
    def tells_b(self) -> bool:
        """Whether samples of different size are at hand."""
        return len(self._samples) > 1

    def _forget(self) -> None:
        for size, samples in list(self._samples.items()):
            while samples and samples[0][0] <= self._count - OUTDATED:
                samples.popleft()
            if not samples:
                del self._samples[size]

    def _fitted(self) -> tuple[float, float]:
        uu = uv = vv = u_sum = v_sum = 0.0
        for samples in self._samples.values():
            _, cost, seconds = max(samples, key=lambda sample: sample[1] / sample[2])
            u, v = cost / seconds, 1.0 / seconds
            uu, uv, vv, u_sum, v_sum = uu + u * u, uv + u * v, vv + v * v, u_sum + u, v_sum + v
        spread = uu * vv - uv * uv
        if spread > 1e-9 * uu * vv:
            a = (u_sum * vv - v_sum * uv) / spread
            b = (v_sum * uu - u_sum * uv) / spread
            if a >= 0 and b >= 0:
                return a, b
            if a < 0:
                # Larger batches took no longer: all of it is overhead.
                return 0.0, v_sum / vv
        # All samples of one size, or small ones that were no slower for their size.
        return u_sum / uu, 0.0


@dataclass
class Sums:
    """Of recent batches, older ones fading. Sums rather than means: a sweep runs from short jobs to long ones, and only
    over a whole sweep does a ratio mean anything."""

    batches: float = 0.0
    jobs: float = 0.0
    cost: float = 0.0
    seconds: float = 0.0
    input_bytes: float = 0.0

    def add(self, *, jobs: int, cost: int, seconds: float, input_bytes: float) -> None:
        self.batches = self.batches * DECAY + 1.0
        self.jobs = self.jobs * DECAY + jobs
        self.cost = self.cost * DECAY + cost
        self.seconds = self.seconds * DECAY + seconds
        self.input_bytes = self.input_bytes * DECAY + input_bytes


class Search(NamedTuple):
    """Where the search for the budget stands."""

    step: int | None
    ceiling: float
    is_settled: bool


@dataclass
class Speed:
    """One version's learned figures. Written by one of the device's threads at a time; any thread may read."""

    configured_budget: int | None = None
    jobs_inside: int | None = None
    """Of a continuous model: how many it holds at once, in place of a budget."""
    max_batch_jobs: int = 2048
    max_batch_seconds: float = 1.0
    """A step that would take longer is not tried: shorter batches keep urgent work and a drain prompt."""
    line: Line = field(default_factory=Line)
    mean_cost: float = 1.0
    """Exact cost of a job."""
    mean_jobs: float = 0.0
    """Of a batch, recently."""
    seconds_per_job: float | None = None
    """Of the whole device: a batch that has half of it to itself counts half of its time."""
    seconds_per_unit: float | None = None
    """Of exact cost, padding included; of the whole device."""
    units_per_byte: float | None = None
    batches: int = 0
    _sums: Sums = field(default_factory=Sums)
    _step: int | None = None
    _trials: int = 0
    """Batches that counted since the last decision."""
    _is_settled: bool = False
    _is_probing: bool = False
    _ceiling: float = math.inf
    """What memory allows, as far as it has shown."""

    @property
    def budget(self) -> int:
        """Padded cost of the next batch."""
        return max(1, self._full // PROBE_SHARE) if self._is_probing else self._full

    @property
    def is_settled(self) -> bool:
        return self.configured_budget is not None or self.jobs_inside is not None or self._is_settled

    @property
    def batch_jobs(self) -> int:
        """About how many jobs a full batch holds."""
        if self.jobs_inside is not None:
            return self.jobs_inside
        return max(1, min(self.max_batch_jobs, int(self._full / max(self.mean_cost, 1e-9))))

    def seconds_for(self, padded_cost: float) -> float | None:
        """Predicted time of a batch; None before the first one ran."""
        fit = self.line.fit()
        return None if fit is None else fit[0] * padded_cost + fit[1]

    def overhead_cost(self) -> float:
        """How much padding costs as little as one more batch: b / a, in units of cost; infinity where cost is free."""
        a, b = self.line.fit() or (0.0, 0.0)
        return b / a if a > 0 else math.inf if b > 0 else 0.0

    def expect(self, *, mean_cost: float) -> None:
        """Tell the typical size of a job before the first batch."""
        if not self.batches:
            self.mean_cost = max(1.0, mean_cost)

    def observe(
        self, *, padded_cost: int, cost: int, jobs: int, seconds: float, share: float = 1.0, input_bytes: float = 0.0
    ) -> None:
        """Learn from one batch that ran to its end on this share of the device. `input_bytes` may be an estimate."""
        seconds = max(seconds, 1e-9)
        self.line.add(padded_cost, seconds)
        self.batches += 1
        self._sums.add(jobs=jobs, cost=cost, seconds=share * seconds, input_bytes=input_bytes)
        self.mean_cost = self._sums.cost / self._sums.jobs
        self.mean_jobs = self._sums.jobs / self._sums.batches
        self.seconds_per_job = self._sums.seconds / self._sums.jobs
        self.seconds_per_unit = self._sums.seconds / max(self._sums.cost, 1)
        if self._sums.input_bytes:
            self.units_per_byte = self._sums.cost / self._sums.input_bytes
        if self.jobs_inside is None and (padded_cost >= FULL * self.budget or jobs >= self.max_batch_jobs):
            self._adapt()

    def shrink(self, padded_cost: int) -> Search:
        """A batch of this cost ran out of memory: a fifth less from now on, regained bit by bit. Returns what `forgive`
        goes back to."""
        before = Search(self._step, self._ceiling, self._is_settled)
        self._ceiling = max(1.0, 0.8 * min(self._full, padded_cost))
        self._step = int(self._ceiling)
        self._is_settled, self._is_probing, self._trials = True, False, 0
        return before

    def forgive(self, before: Search) -> None:
        """It was not the size of the batch."""
        self._step, self._ceiling, self._is_settled = before

    @property
    def _full(self) -> int:
        if self.configured_budget is not None:
            return int(min(self.configured_budget, self._ceiling))
        if self.jobs_inside is not None:
            return max(1, round(self.jobs_inside * self.mean_cost))
        return self._step if self._step is not None else max(1, round(self.mean_cost))

    def _adapt(self) -> None:
        if self._step is None:
            self._step = self._full
        self._trials += 1
        if self.configured_budget is not None:
            if self._trials >= PROBE_EVERY:
                self._ceiling, self._trials = self._ceiling * (1 + RECOVERY), 0
        elif self._is_probing:
            if self._trials >= PROBE_BATCHES:
                self._is_probing, self._trials = False, 0
                self._follow()
        elif self._is_settled:
            if self._trials >= PROBE_EVERY:
                self._is_probing, self._trials = True, 0
        elif self._trials >= BATCHES_A_STEP:
            self._trials = 0
            self._is_settled = self._wanted() <= self._step or not self._grow()

    def _follow(self) -> None:
        """One step towards what the line asks for now."""
        assert self._step is not None
        self._ceiling *= 1 + RECOVERY
        wanted = self._wanted()
        if wanted > MARGIN * self._step:
            self._grow()
        elif wanted * MARGIN < self._step / 2 or not self._may_try(self._step):
            self._step = max(1, self._step // 2)

    def _grow(self) -> bool:
        """Double the step as far as may be; whether it grew."""
        assert self._step is not None
        step = int(min(2 * self._step, self._ceiling))
        if step <= self._step or not self._may_try(step):
            return False
        self._step = step
        return True

    def _wanted(self) -> float:
        """The cost of a saturated batch."""
        # Below that a small batch is no smaller than a full one, and nothing more would be learned.
        least = PROBE_SHARE * self.mean_cost
        return max(least, WORTH * self.overhead_cost()) if self.line.tells_b else math.inf

    def _may_try(self, step: int) -> bool:
        predicted = self.seconds_for(step)
        fits = step / max(self.mean_cost, 1e-9) <= 2 * self.max_batch_jobs
        return fits and (predicted is None or predicted <= self.max_batch_seconds)
