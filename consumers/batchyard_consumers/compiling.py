"""`torch.compile`: a model's passes as one program, for every shape that batches have, before the first job.

On a CPU one program takes all shapes. On a GPU its launches are recorded as CUDA graphs, one for each shape, so that
batches are padded up to a few shapes, all of which are recorded before the first job.

A runtime that can be compiled defines

- `compilable`: the module whose `forward` is compiled, in the dtype that is in use;
- `is_bucketed`: set here; whether batches are padded to those few shapes;
- `shapes(most) -> iterable of lists of items`: a batch of every such shape, of at most that cost.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import torch

from batchyard_consumers.device import run_alone

WARM_COST = 16_384
"""Of the largest shape that is warmed; larger ones of a GPU are recorded when they first come."""
PASSES = 2
"""Of each shape: on a GPU the first one warms up and the second one records."""


@runtime_checkable
class Compilable(Protocol):
    """See above."""

    is_bucketed: bool

    @property
    def compilable(self) -> Any: ...
    def shapes(self, most: int) -> Iterable[list[Any]]: ...


def begin(model: Compilable, device: str) -> None:
    """From here on its passes are compiled when they first come."""
    module = model.compilable
    has_graphs = device.startswith("cuda")
    mode = "reduce-overhead" if has_graphs else "default"
    module.compiled_forward = torch.compile(module.forward, dynamic=True, mode=mode)
    module.compiled_in_buckets = has_graphs
    resume(model)


def resume(model: Compilable) -> None:
    """Compiled passes, after `pause`."""
    module = model.compilable
    module.forward = module.compiled_forward
    model.is_bucketed = module.compiled_in_buckets


def pause(model: Compilable) -> None:
    """Plain passes, as they were."""
    vars(model.compilable).pop("forward", None)
    model.is_bucketed = False


def end(model: Compilable) -> None:
    """Plain passes for good."""
    pause(model)
    vars(model.compilable).pop("compiled_forward", None)


def warm(model: Any, device: str) -> None:
    """Compile or record every shape."""
    for items in model.shapes(WARM_COST):
        for _ in range(PASSES):
            run_alone(model, items, device)
