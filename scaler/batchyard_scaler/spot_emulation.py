"""Spot capacity that comes and goes on this machine as it once did in a cloud."""

from __future__ import annotations

import time
from collections.abc import Callable

from batchyard.spot_trace import SpotTrace


class SpotEmulation:
    """How many spot consumers there is room for now, all pools together. Begins with its first question. Owned by one
    thread."""

    def __init__(
        self,
        trace: SpotTrace,
        *,
        notice_seconds: float = 30.0,
        speed: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`notice_seconds`: between being told and being killed; `speed`: seconds of the trace in one second."""
        self.zone = trace.zone
        self.notice_seconds = notice_seconds
        self._trace = trace
        self._speed = speed
        self._clock = clock
        self._began_at: float | None = None
        self._next = 0
        self._available = 0

    def available(self) -> int:
        """Consumers that there is room for."""
        if self._began_at is None:
            self._began_at = self._clock()
        elapsed = (self._clock() - self._began_at) * self._speed
        while (due := self._trace.change(self._next))[0] <= elapsed:
            self._available += due[1]
            self._next += 1
        return self._available
