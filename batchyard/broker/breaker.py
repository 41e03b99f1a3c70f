"""A circuit breaker: while the broker is away its callers hear so at once instead of each waiting for a timeout."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 2.0


class Breaker:
    """Closed while calls succeed; open for a pause, doubling, after a failure; then one caller at a time may probe.

    Thread-safe. `admits` must be followed by `succeeded` or `failed`.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._pause = 0.0
        self._open_until = 0.0

    @property
    def is_closed(self) -> bool:
        return self._pause == 0.0

    def admits(self) -> bool:
        """Whether this call may go to the broker. Of the callers after a pause only the first may: it probes."""
        if self._pause == 0.0:
            return True
        with self._lock:
            now = self._clock()
            if self._pause == 0.0:
                return True
            if now < self._open_until:
                return False
            # Others wait out the probe: until it answers, or for another pause where its thread never does.
            self._open_until = now + max(self._pause, 1.0)
            return True

    def succeeded(self) -> None:
        if self._pause != 0.0:
            with self._lock:
                self._pause = self._open_until = 0.0

    def failed(self) -> None:
        with self._lock:
            self._pause = min(max(self._pause * 2, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
            self._open_until = self._clock() + self._pause
