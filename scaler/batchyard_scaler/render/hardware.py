"""What one consumer of a pool has, and what its models ask for."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from batchyard.settings import HardwareSettings, ModelSettings, PoolSettings, Settings

WRITE_SECONDS = 3.0
"""Kept by a drain, beyond the batch on the device, for writing its results."""
END_SECONDS = 10.0
"""From the end of a drain to that of the process, and a margin."""

_SLICE = re.compile(r"nvidia\.com/mig-\d+g\.(\d+)gb(\..+)?")


def hardware_of(settings: Settings, pool: PoolSettings) -> HardwareSettings:
    """Its class; without one a GPU and the defaults, or no GPU where its device is the CPU."""
    for each in settings.hardware:
        if each.name == pool.hardware:
            return each
    return HardwareSettings(name="", resource="" if pool.device == "cpu" else "nvidia.com/gpu")


def gpu_memory_gib(hardware: HardwareSettings) -> float | None:
    """Of the one GPU or slice; 0 without any, None where it is not known."""
    if not hardware.resource:
        return 0.0
    if hardware.gpu_memory_gib is not None:
        return hardware.gpu_memory_gib
    part = _SLICE.fullmatch(hardware.resource)
    return float(part[1]) if part else None


def models_of(settings: Settings, pool: PoolSettings) -> Sequence[ModelSettings]:
    """The versions that every consumer of the pool loads."""
    return [model for model in settings.models if {model.name, model.qualified} & set(pool.models)]


def drain_seconds(settings: Settings, pool: PoolSettings) -> float:
    """The pool's own grace, or longer where 99 of 100 batches need it: a drain that is cut short repeats the batch."""
    batches = [model.p99_batch_seconds or 0.0 for model in models_of(settings, pool)]
    return max(pool.drain_seconds, max(batches, default=0.0) + WRITE_SECONDS)


def grace_seconds(settings: Settings, pool: PoolSettings) -> int:
    """From SIGTERM to SIGKILL."""
    return math.ceil(drain_seconds(settings, pool) + END_SECONDS)
