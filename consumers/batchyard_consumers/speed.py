"""What a model costs on this device, learned from its batches: the fitted line, and the budget that follows. Pure.

`t = a * x + b`: seconds of a forward pass against its padded cost. The budget of a batch climbs by doubling while the
work done per second still grows, and settles on the smallest step that comes within 5 % of the best; from then on a
neighbouring step is tried now and then, so that it follows the machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FIRST_BATCH_JOBS = 4
"""Jobs of typical size in the first batch of a model nobody has measured."""
BATCHES_A_STEP = 2
"""Measurements of a step before it is judged; the best of them counts, for a busy machine only ever slows one down."""
SATURATED = 0.95
FULL = 0.7
"""A batch below this share of the budget says nothing about the budget."""
PROBE_EVERY, PROBE_BATCHES = 64, 4
"""Full batches between two trials of a neighbouring step, and in one."""
WORTH_GROWING, WORTH_SHRINKING = 1.05, 0.98
"""Rate of the neighbour against the present step's: larger batches must gain, smaller ones only not lose, since they
keep urgent work prompt and leave more of the pool to choose from."""
DECAY = 0.98
SMOOTHING = 0.2


@dataclass
class Line:
    """Weighted least squares of seconds against cost, older samples fading."""

    weight: float = 0.0
    x: float = 0.0
    t: float = 0.0
    xx: float = 0.0
    xt: float = 0.0

    def add(self, cost: float, seconds: float) -> None:
        self.weight = self.weight * DECAY + 1.0
        self.x = self.x * DECAY + cost
        self.t = self.t * DECAY + seconds
        self.xx = self.xx * DECAY + cost * cost
        self.xt = self.xt * DECAY + cost * seconds

    def fit(self) -> tuple[float, float] | None:
        """`(a, b)`, neither negative; None before the first sample."""
        if not self.weight or not self.x:
            return None
        spread = self.weight * self.xx - self.x * self.x
        if spread > 1e-9 * self.weight * self.xx:
            a = (self.weight * self.xt - self.x * self.t) / spread
            b = (self.t - a * self.x) / self.weight
            if a > 0 and b >= 0:
                return a, b
        # All samples of one size, or noise larger than the slope: no constant part can be told apart.
        return self.t / self.x, 0.0


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


@dataclass
class Speed:
    """One version's learned figures. Written by the device's thread alone; any thread may read."""

    configured_budget: int | None = None
    max_batch_jobs: int = 2048
    max_batch_seconds: float = 1.0
    """A step that would take longer is not tried: shorter batches keep urgent work and a drain prompt."""
    line: Line = field(default_factory=Line)
    mean_cost: float = 1.0
    """Exact cost of a job."""
    mean_jobs: float = 0.0
    """Of a batch, recently."""
    seconds_per_job: float | None = None
    seconds_per_unit: float | None = None
    """Of exact cost, padding included."""
    units_per_byte: float | None = None
    batches: int = 0
    _sums: Sums = field(default_factory=Sums)
    _rates: dict[int, float] = field(default_factory=dict)
    _step: int | None = None
    _trials: int = 0
    _is_settled: bool = False
    _settled: int = 0
    _since_probe: int = 0
    _probe_upwards: bool = True
    _probed: tuple[int, float] = (0, 0.0)
    """Useful cost and seconds of the trial under way."""

    @property
    def budget(self) -> int:
        """Padded cost of one batch."""
        if self.configured_budget is not None:
            return self.configured_budget
        if self._step is None:
            return max(1, round(FIRST_BATCH_JOBS * self.mean_cost))
        return self._step

    @property
    def is_settled(self) -> bool:
        return self.configured_budget is not None or self._is_settled

    @property
    def batch_jobs(self) -> int:
        """About how many jobs a full batch holds."""
        return max(1, min(self.max_batch_jobs, int(self.budget / max(self.mean_cost, 1e-9))))

    def seconds_for(self, padded_cost: float) -> float | None:
        """Predicted time of a batch; None before the first one ran."""
        fit = self.line.fit()
        return None if fit is None else fit[0] * padded_cost + fit[1]

    def overhead_cost(self) -> float:
        """How much padding costs as little as one more batch: b / a, in units of cost."""
        fit = self.line.fit()
        return fit[1] / fit[0] if fit is not None and fit[0] > 0 else 0.0

    def expect(self, *, mean_cost: float) -> None:
        """Tell the typical size of a job before the first batch."""
        if not self.batches:
            self.mean_cost = max(1.0, mean_cost)

    def observe(self, *, padded_cost: int, cost: int, jobs: int, seconds: float, input_bytes: float = 0.0) -> None:
        """Learn from one batch that ran to its end. `input_bytes` may be an estimate."""
        seconds = max(seconds, 1e-9)
        self.line.add(padded_cost, seconds)
        self.batches += 1
        self._sums.add(jobs=jobs, cost=cost, seconds=seconds, input_bytes=input_bytes)
        self.mean_cost = self._sums.cost / self._sums.jobs
        self.mean_jobs = self._sums.jobs / self._sums.batches
        self.seconds_per_job = self._sums.seconds / self._sums.jobs
        self.seconds_per_unit = self._sums.seconds / max(self._sums.cost, 1)
        if self._sums.input_bytes:
            self.units_per_byte = self._sums.cost / self._sums.input_bytes
        if self.configured_budget is None and (padded_cost >= FULL * self.budget or jobs >= self.max_batch_jobs):
            self._learn_budget(cost, seconds)

    def shrink(self) -> None:
        """The device ran out of memory: a fifth less from now on, and no more climbing."""
        self._step = max(1, int(self.budget * 0.8))
        self._rates = {step: rate for step, rate in self._rates.items() if step < self._step}
        self._rates[self._step] = max(self._rates.values(), default=1.0)
        self._settled, self._is_settled, self._probe_upwards = self._step, True, False

    def _learn_budget(self, cost: int, seconds: float) -> None:
        """Judge steps by useful cost per second: a budget that the pool can only fill with padding gains nothing."""
        if self._step is None:
            self._step = self.budget
        if self._is_settled:
            self._refine(self._step, cost, seconds)
            return
        step = self._step
        self._rates[step] = max(cost / seconds, self._rates.get(step, 0.0))
        self._trials += 1
        if self._trials < BATCHES_A_STEP:
            return
        self._trials = 0
        below = self._rates.get(step // 2)
        still_grows = below is None or self._rates[step] * SATURATED > below
        if still_grows and self._may_try(step * 2):
            self._step = step * 2
        else:
            self._is_settled = True
            self._choose()

    def _refine(self, step: int, cost: int, seconds: float) -> None:
        if step != self._settled:
            self._try_neighbour(step, cost, seconds)
            return
        self._rates[step] = _moved(self._rates.get(step), cost / seconds, SMOOTHING)
        self._since_probe += 1
        if self._since_probe < PROBE_EVERY:
            return
        self._since_probe = 0
        neighbour = step * 2 if self._probe_upwards else step // 2
        self._probe_upwards = not self._probe_upwards
        if neighbour >= 1 and self._may_try(neighbour):
            self._step, self._probed, self._trials = neighbour, (0, 0.0), 0

    def _try_neighbour(self, step: int, cost: int, seconds: float) -> None:
        self._probed = (self._probed[0] + cost, self._probed[1] + seconds)
        self._trials += 1
        if self._trials < PROBE_BATCHES:
            return
        rate, present = self._probed[0] / self._probed[1], self._rates[self._settled]
        if rate > present * (WORTH_GROWING if step > self._settled else WORTH_SHRINKING):
            self._rates[step], self._settled = rate, step
        self._step = self._settled

    def _choose(self) -> None:
        best = max(self._rates.values())
        self._settled = self._step = min(step for step, rate in self._rates.items() if rate >= SATURATED * best)

    def _may_try(self, step: int) -> bool:
        predicted = self.seconds_for(step)
        fits = step / max(self.mean_cost, 1e-9) <= 2 * self.max_batch_jobs
        return fits and (predicted is None or predicted <= self.max_batch_seconds)


def _moved(mean: float | None, value: float, share: float) -> float:
    return value if mean is None else mean + share * (value - mean)
