"""Weights of evicted models in the machine's memory, from where they return to a GPU in a fraction of a load.

A model is moved with all that it has: its object stays, and the tensors in its modules and among its attributes go to
page-locked memory and back. On a CPU there is nothing to keep: the machine's memory is what an eviction is to free.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from batchyard.settings import PoolSettings
from batchyard.telemetry import log_event

GIB = 1024**3
FREE_SHARE = 0.25
"""Of the machine's memory, or of its container's, that copies leave free where a pool sets no limit of its own."""
FREED_SHARE = 0.9
"""Of a model's size: where less of the GPU's memory is free once it was moved, it holds on to some by other ways, and
no copy is kept."""

log = logging.getLogger(__name__)


def tensors_of(model: Any) -> Iterator[torch.Tensor]:
    """The tensors of a model, wherever it keeps them as attributes or in modules that are attributes; each once."""
    found: dict[int, torch.Tensor] = {}
    for value in vars(model).values():
        if isinstance(value, torch.nn.Module):
            found |= {id(tensor): tensor for tensor in (*value.parameters(), *value.buffers())}
        elif isinstance(value, torch.Tensor):
            found[id(value)] = value
    yield from found.values()


def size_of(model: Any) -> int:
    """Bytes of these tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(model))


def host_size_of(model: Any) -> int:
    """Bytes that they take in page-locked memory, of which torch gives out powers of two."""
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors_of(model)]
    return sum(1 << (size - 1).bit_length() for size in sizes if size)


def to_host(model: Any, *, device: str) -> bool:
    """Move a model that nobody uses into the machine's memory; whether that freed the device of it. Where it did not,
    the model is of no more use."""
    size, before = size_of(model), _allocated(device)
    try:
        with torch.no_grad():
            for tensor in tensors_of(model):
                tensor.data = _on_host(tensor.data, is_pinned=device.startswith("cuda"))
    except (RuntimeError, MemoryError) as error:
        log_event(log, "host_copy_failed", level=logging.WARNING, error=error)
        return False
    gc.collect()
    return before is None or before - (_allocated(device) or 0) >= FREED_SHARE * size


def to_device(model: Any, *, device: str) -> None:
    """Move it back. RuntimeError where the device has no room."""
    with torch.no_grad():
        for tensor in tensors_of(model):
            tensor.data = tensor.data.to(device, non_blocking=True)
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        # Else torch keeps what was page-locked for the next copy of such a size, beyond the limit; before it had this
        # function it did so in any case.
        getattr(torch.accelerator, "empty_host_cache", gc.collect)()


def host_room(device: str, pool: PoolSettings) -> Callable[[float], float]:
    """From the bytes of copies that are held to those that may be: as configured, else as much as leaves a quarter of
    the machine's memory free; none beside a CPU."""
    if not device.startswith("cuda"):
        return lambda held: 0.0
    limit = pool.host_memory_gib
    if limit is not None:
        return lambda held: limit * GIB
    return lambda held: held + max(0.0, free_memory())


def free_memory(root: Path = Path("/")) -> float:
    """Bytes beyond the share that is left free, of the machine and of the container that this process is in; 0 where
    neither is known."""
    known = [beyond for beyond in (_machines(root), _containers(root)) if beyond is not None]
    return min(known, default=0.0)


def _machines(root: Path) -> float | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        kib = {name: float(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        return 1024 * (kib["MemAvailable"] - FREE_SHARE * kib["MemTotal"])
    except (OSError, KeyError, ValueError, IndexError):
        return None


def _containers(root: Path) -> float | None:
    folder = root / "sys/fs/cgroup"
    try:
        limit = float((folder / "memory.max").read_text())
        used = float((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        # What files leave in memory gives way by itself.
        return limit * (1 - FREE_SHARE) - (used - float(stat["inactive_file"]))
    except (OSError, KeyError, ValueError):
        return None


def _on_host(tensor: torch.Tensor, *, is_pinned: bool) -> torch.Tensor:
    if is_pinned:
        try:
            return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor)
        except RuntimeError:
            log_event(log, "host_memory_not_pinned", level=logging.DEBUG)
    return tensor.to("cpu", copy=True)


def _allocated(device: str) -> int | None:
    """Of a GPU's memory, by this process; None on a CPU."""
    return torch.cuda.memory_allocated(device) if device.startswith("cuda") else None
