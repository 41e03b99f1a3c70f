"""When a failed job is tried again: full-jitter exponential back-off within the job's budget of failures. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from batchyard.jobs import ClaimedJob, ErrorInfo, Outcome, State


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """`base_seconds` doubles with every failure up to `max_seconds`; the wait is drawn evenly from zero to that.

    Full jitter spreads jobs that failed together; see "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
    """

    base_seconds: float = 1.0
    max_seconds: float = 300.0
    draw: Callable[[float, float], float] = random.uniform

    def ceiling_seconds(self, failures: int) -> float:
        """The longest wait after `failures` failures, counting this one."""
        # The exponent is capped so that a large budget of failures cannot overflow the float.
        return min(self.max_seconds, self.base_seconds * 2.0 ** min(max(failures - 1, 0), 64))

    def back_off_ms(self, failures: int) -> int:
        """How long to wait after `failures` failures, counting this one; at least a millisecond."""
        return max(1, round(1000 * self.draw(0.0, self.ceiling_seconds(failures))))

    def outcome(self, job: ClaimedJob, error: ErrorInfo, *, cost: int = 0, device_us: int = 0) -> Outcome:
        """What a failure makes of a job: WAITING while `error` is retryable and the budget lasts, else FAILED."""
        failures = job.failures + 1
        again = error.retryable and failures < job.max_failures
        return Outcome(
            job,
            State.WAITING if again else State.FAILED,
            error=error,
            cost=cost,
            device_us=device_us,
            retry_in_ms=self.back_off_ms(failures) if again else 0,
        )
