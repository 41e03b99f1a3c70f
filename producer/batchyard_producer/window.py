"""How much work is kept ticketed ahead of a queue's consumers, and how the rest of it is allowed away. Pure."""

from __future__ import annotations

from collections import deque

LEAST_JOBS = 256
MOST_JOBS = 131_072
"""Bounds the broker's memory: about 4 MB of tickets a queue."""

GROWTH = 1.25
"""Headroom over what was drained: without it a window could never find out that its consumers can do more."""

REFILL_BELOW = 0.75
"""A window is filled up once it falls below this part, so that a look at the database yields many jobs."""


def learned_seconds_per_job(*, seconds_per_unit: float | None, mean_cost: float) -> float | None:
    """What a job takes one consumer, by what consumers have learned; None where they have not."""
    if not seconds_per_unit or mean_cost <= 0:
        return None
    return seconds_per_unit * mean_cost


class Pace:
    """How fast a queue's tickets are drained, as seen at the broker. Owned by the dispatcher's thread."""

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds
        self._drained: deque[tuple[float, int]] = deque()
        self._jobs = 0
        self._busy_since: float | None = None
        self._burst = 0.0
        self._calmed_at = 0.0

    def observe(self, drained: int, *, now: float, is_busy: bool, is_starved: bool) -> None:
        """Take note of jobs whose tickets left the broker since the last look.

        `is_busy`: tickets were out all the time; `is_starved`: none is left although more jobs wait.
        """
        if drained:
            self._drained.append((now, drained))
            self._jobs += drained
        while self._drained and self._drained[0][0] <= now - self._seconds:
            self._jobs -= self._drained.popleft()[1]
        if not is_busy:
            self._busy_since = None
        elif self._busy_since is None:
            self._busy_since = now
        if is_starved:
            self._burst = min(max(self._burst * 2, 2.0 * LEAST_JOBS), MOST_JOBS)
            self._calmed_at = now
        elif now - self._calmed_at >= self._seconds:
            self._burst /= 2
            self._calmed_at = now

    def window_jobs(self, *, now: float, learned_per_second: float | None) -> int:
        """Jobs to keep ticketed: `seconds` of work by what was measured, or, until then, by what was learned."""
        wanted = max(self._jobs * GROWTH, self._burst)
        is_measured = self._busy_since is not None and now - self._busy_since >= self._seconds
        if learned_per_second is not None and not is_measured:
            wanted = max(wanted, learned_per_second * self._seconds)
        return int(min(max(wanted, LEAST_JOBS), MOST_JOBS))


def jobs_allowed(*, window: int, outstanding: int, members: int) -> int:
    """Jobs that each of so many processes may ticket by itself, when nothing waits for the leader."""
    return max(0, window - outstanding) // max(1, members)


def retry_seconds(window_seconds: float, *, least: float) -> float:
    """How long a ticketed job may stay queued, once its ticket has left the broker, before it is ticketed again."""
    return max(2 * window_seconds, least)
