"""What sparse work costs at the least, whoever decides: each start is paid, and few jobs come while a replica is there.

A bound for one model on replicas of its own, by a dynamic program over its jobs in the order of their arrival, which is
that of their deadlines where all have the same time. It rests on three things that hold of every plan:

- A job is served while a replica is there between its arrival and its deadline. Replicas that are there at the same
  time count as one start here, and as many jobs at once as one likes may be served.
- So let each job belong to the first stay of a replica that reaches into its time. The jobs of one stay then follow on
  one another, and it lasts from the first one's deadline until the last one's arrival at the least.
- Beyond the jobs of the stay there is nothing to do in between, so that what their work does not fill is idle.

Where some jobs may be late, each costs a fine, less its work, which may fill idle time anywhere; what is left after the
fines for as many as may be late is a bound for every fine (Lagrange), and the highest of them counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from batchyard_scaler.simulator.trace import Trace

FINES = 12
"""That are tried, evenly spaced up to twice what a start and a job cost."""


def least_over_work(trace: Trace, *, cold_start_seconds: float, late_share: float = 0.0) -> float:
    """The least that replicas of one model each can cost, over the work; `late_share` of the jobs may be late.

    Raises ValueError where jobs have different time between arrival and deadline.
    """
    slack = trace.due_at - trace.arrive_at
    if len(trace) and float(np.ptp(slack)) > 1e-3:
        raise ValueError("the bound is of jobs that all have the same time between arrival and deadline")
    apart = [_model(trace, model) for model in np.unique(trace.model)]
    fines = [math.inf]
    if late_share:
        most = 2 * (cold_start_seconds + float(trace.work_seconds.mean()))
        fines = [most * (number + 1) / FINES for number in range(FINES)]
    found = [sum(_overhead(*mine, start=cold_start_seconds, fine=fine) for mine in apart) for fine in fines]
    if late_share:
        found = [least - late_share * len(trace) * fine for least, fine in zip(found, fines, strict=True)]
    return 1 + max(0.0, *found) / trace.total_work_seconds


def _model(trace: Trace, model: int) -> tuple[list[float], list[float], list[float]]:
    mine = trace.model == model
    return trace.arrive_at[mine].tolist(), trace.due_at[mine].tolist(), trace.work_seconds[mine].tolist()


def _overhead(
    arrive: Sequence[float], due: Sequence[float], work: Sequence[float], *, start: float, fine: float
) -> float:
    """Seconds of starts, idle replicas and fines at the least."""
    count = len(arrive)
    least = [0.0] + [math.inf] * count
    """Of the first so many jobs."""
    for first in range(count):
        before = least[first]
        least[first + 1] = min(least[first + 1], before + fine - work[first])
        filled = 0.0
        for last in range(first, count):
            filled += work[last]
            idle = arrive[last] - due[first] - filled
            if idle > start:
                break  # another start costs less from here on
            least[last + 1] = min(least[last + 1], before + start + max(0.0, idle))
    return least[count]
