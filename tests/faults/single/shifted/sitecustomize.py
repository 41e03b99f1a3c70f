"""Shifts the clock of a process that finds this folder on its path, by SHIFT_SECONDS: what it asks for the time lies.

Libraries that fake the clock for a whole process hang threaded Python; nothing of ours reads the clock otherwise.
"""

import os
import time

_SHIFT_NS = int(float(os.environ.get("SHIFT_SECONDS", "0")) * 1e9)
_now_ns = time.time_ns


def _shifted_ns() -> int:
    return _now_ns() + _SHIFT_NS


time.time_ns = _shifted_ns
time.time = lambda: _shifted_ns() / 1e9
