"""`torch.compile`: a model's passes as one program that takes batches of every shape, made before the first job.

One program for all shapes, not one for each of a few that batches would be padded to: nothing is padded for it, and no
batch waits for a compiler. Nor are CUDA graphs recorded: torch keeps those of each thread apart, and the thread that
loads a model is not the one that runs it.

A runtime that can be compiled defines

- `compilable`: the module whose `forward` is compiled, in the dtype that is in use;
- `shapes() -> iterable of lists of items`: batches of shapes that a compiler tells apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import torch

from batchyard_consumers.device import run_alone


@runtime_checkable
class Compilable(Protocol):
    """See above."""

    @property
    def compilable(self) -> Any: ...
    def shapes(self) -> Iterable[list[Any]]: ...


def begin(model: Compilable) -> None:
    """From here on its passes are compiled when they first come."""
    module = model.compilable
    module.compiled_forward = torch.compile(module.forward, dynamic=True)
    resume(model)


def resume(model: Compilable) -> None:
    """Compiled passes, after `pause`."""
    module = model.compilable
    module.forward = module.compiled_forward


def pause(model: Compilable) -> None:
    """Plain passes, as they were."""
    vars(model.compilable).pop("forward", None)


def end(model: Compilable) -> None:
    """Plain passes for good."""
    pause(model)
    vars(model.compilable).pop("compiled_forward", None)


def warm(model: Any, device: str) -> None:
    """Compile for every shape."""
    for items in model.shapes():
        run_alone(model, items, device)
