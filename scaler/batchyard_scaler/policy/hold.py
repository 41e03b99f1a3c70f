"""Held activation: the first replica of a pool starts at the latest safe moment, for as much work as comes until then.

On sparse work it is the largest lever there is: each start is paid once for all that came meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from batchyard_scaler.policy.records import Pool
from batchyard_scaler.policy.work import Piece

PAYS = 10.0
"""Work that takes so many times as long as a start is not held: the start is a small part of its cost."""
SPREAD = 2.5
"""Margin for jobs that take longer than expected: so many times one job's time, times the root of their number. Run
times of inference spread about as widely as their mean."""
ACT_SECONDS = 5.0
"""Between a decision and its effect: a look of KEDA and one of the HPA."""


def hold_seconds(pieces: Sequence[Piece], *, pool: Pool, reserve_seconds: float = 0.0) -> float:
    """How long the first start may wait so that one replica still does all in time; 0: start now.

    `reserve_seconds`: how much earlier than that, for another try should this start come to nothing.
    """
    total = jobs = 0.0
    slack = math.inf
    margin = pool.cold_start_seconds + reserve_seconds + ACT_SECONDS
    for piece in pieces:
        if not piece.may_wait:
            return 0.0
        total += piece.work_seconds
        jobs += piece.jobs
        spread = SPREAD * (total / jobs + 2 * pool.swap_seconds) * math.sqrt(jobs)
        slack = min(slack, piece.due_seconds - margin - (total + spread) / pool.speed)
    if total >= PAYS * pool.cold_start_seconds * pool.speed:
        return 0.0
    return max(0.0, slack)
