"""What a model takes of its device's memory: as the ledger reckons with, and as it was measured."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Of one model, found out while it was loaded and warmed. Sizes in bytes."""

    weights: int = 0
    passes: int = 0
    """What its largest pass took beside them; 0 on a CPU, where that cannot be told from the rest of the process."""
    cost: int = 1
    """Of that pass, padding included."""
    measured: int = 0
    """By how much the memory in use had grown when it was at its highest."""

    def at(self, budget: int) -> int:
        """What the ledger reckons with for batches of so much cost: weights, and a pass in proportion to its cost."""
        return self.weights + round(self.passes * budget / self.cost)


class Scale:
    """Weighs one model: made before it is loaded, told when it is, asked when it is warm. Owned by one thread."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._before = in_use(device)
        self._loaded = 0

    def loaded(self) -> None:
        """Everything has its place; what follows is passes."""
        if self._device.startswith("cuda") and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.reset_peak_memory_stats(self._device)
            self._loaded = in_use(self._device)

    def footprint(self, *, weights: int, cost: int) -> Footprint:
        """`cost`: of the largest pass since then; 0 where there was none."""
        highest = most_used(self._device)
        passes = highest - self._loaded if self._device.startswith("cuda") and cost else 0
        return Footprint(weights=weights, passes=passes, cost=max(1, cost), measured=max(0, highest - self._before))


def in_use(device: str) -> int:
    """Bytes that this process uses of the device's memory now; of a CPU's, all that it has in memory."""
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated(device)
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def most_used(device: str) -> int:
    """The most since it was reset, on a GPU; on a CPU what is used now."""
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else in_use(device)
