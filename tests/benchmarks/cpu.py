"""CPU time of processes and their children, so that every rate stands beside what it cost."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

Role = Callable[[list[str]], str | None]
"""Names the role of a process by its command line; None leaves it to its parent's role."""


@dataclass
class CpuMeter:
    """Adds up CPU seconds by role of process trees from `start()` to `stop()`, which they must outlive."""

    role_of: Role
    _before: dict[int, float] = field(default_factory=dict)

    def start(self, pids: list[int]) -> None:
        self._pids = pids
        self._before = {process.pid: _seconds(process) for process, _ in self._walk()}

    def stop(self) -> dict[str, float]:
        """CPU seconds by role since `start()`."""
        spent: dict[str, float] = defaultdict(float)
        for process, role in self._walk():
            spent[role] += _seconds(process) - self._before.get(process.pid, 0.0)
        return {role: seconds for role, seconds in sorted(spent.items()) if seconds > 0.0}

    def _walk(self) -> list[tuple[psutil.Process, str]]:
        found: list[tuple[psutil.Process, str]] = []
        for pid in self._pids:
            pending = [(psutil.Process(pid), "other")]
            while pending:
                process, inherited = pending.pop()
                try:
                    role = "client" if process.pid == os.getpid() else self.role_of(process.cmdline()) or inherited
                    found.append((process, role))
                    if process.pid != os.getpid():
                        pending.extend((child, role) for child in process.children())
                except psutil.NoSuchProcess:
                    continue
        return found


def calibrate() -> float:
    """Milliseconds of CPU that a plain loop takes now: where it takes longer, so does everything else."""
    began = time.process_time()
    total = 0
    for number in range(2_000_000):
        total += number
    return (time.process_time() - began) * 1e3


def _seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)
