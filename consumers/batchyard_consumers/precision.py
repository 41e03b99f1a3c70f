"""What a model computes in: as `dtype` asks, or by `auto` the fastest that stays close to float32.

A runtime that can compute in other dtypes than float32 defines

- `dtypes`: their names, such as `("bfloat16", "float16")`;
- `use_dtype(name, for_good=…)`: bring the weights there; any number of times until it is for good;
- `proofs() -> list`: inputs to compare results on, other than `samples`;
- `agreement(reference, outputs) -> float`: of the outputs of one forward pass over them, 1.0 where they are the same;
- `tolerance`: the least agreement that `auto` takes.

One that brings its weights to `self.dtype` in `load`, by itself, defines `dtypes` alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from batchyard.errors import ModelLoadError
from batchyard.model import Model
from batchyard_consumers.device import run_alone

FULL = "float32"
GAIN = 1.1
"""How much faster than float32 is worth another dtype."""
TRIAL_COST = 512
TRIALS = 4
HOPELESS = 2.0
"""So much slower than the fastest in its first pass, which costs more than the later ones, no dtype will win."""


@runtime_checkable
class Convertible(Protocol):
    """See above."""

    dtypes: Sequence[str]
    tolerance: float

    def use_dtype(self, name: str, *, for_good: bool) -> None: ...
    def proofs(self) -> list[Any]: ...
    def samples(self, cost: int) -> list[Any]: ...
    def agreement(self, reference: Any, outputs: Any) -> float: ...


def narrowed(module: Any, dtype: torch.dtype) -> Any:
    """A copy of the module, all of it in that dtype."""
    return copy.deepcopy(module).to(dtype)


class InDtypes:
    """The weights of a module in each dtype that is tried; `narrow` makes the copies."""

    def __init__(self, narrow: Callable[[Any, torch.dtype], Any] = narrowed) -> None:
        self._narrow = narrow
        self._modules: dict[str, Any] = {}

    def use(self, module: Any, name: str, *, for_good: bool) -> Any:
        """The module in that dtype; the first that comes is in float32. For good, the others are forgotten."""
        full = self._modules.setdefault(FULL, module)
        if name not in self._modules:
            self._modules[name] = self._narrow(full, getattr(torch, name))
        found = self._modules[name]
        if for_good:
            self._modules.clear()
        return found


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One dtype, tried."""

    dtype: str
    seconds: float
    """Of the fastest of a few passes over the same items."""
    agreement: float
    """With float32."""


def choose(trials: Sequence[Trial], *, tolerance: float) -> Trial:
    """The fastest that agrees, where it gains enough over float32, the first of the trials."""
    full = trials[0]
    agreeing = [trial for trial in trials[1:] if trial.agreement >= tolerance and trial.seconds * GAIN <= full.seconds]
    return min(agreeing, key=lambda trial: trial.seconds, default=full)


def settle(model: Model, *, name: str, device: str) -> str:
    """Bring a loaded model to the dtype that it was asked for; what was picked and why, for people. ModelLoadError."""
    wanted = model.dtype
    dtypes = getattr(model, "dtypes", ())
    if wanted not in ("auto", FULL, *dtypes):
        allowed = ", ".join(("auto", FULL, *dtypes))
        raise ModelLoadError(f"{name}: dtype is {wanted!r}; with its runtime it may be {allowed}")
    if not isinstance(model, Convertible):
        return wanted if dtypes else FULL
    if wanted != "auto":
        model.use_dtype(wanted, for_good=True)
        return wanted
    trials = try_all(model, device)
    chosen = choose(trials, tolerance=model.tolerance)
    model.use_dtype(chosen.dtype, for_good=True)
    others = [
        f"{trial.dtype} {trials[0].seconds / trial.seconds:.2f} times as fast, agreement {trial.agreement:.4f}"
        for trial in trials[1:]
    ]
    return f"{chosen.dtype} ({'; '.join(others)})"


def try_all(model: Any, device: str) -> list[Trial]:
    """float32 and every other dtype of a convertible model, timed on samples and compared on proofs."""
    proofs = model.preprocess(model.proofs(), {})
    agreements: dict[str, float] = {}
    reference: Any = None
    for dtype in (FULL, *model.dtypes):
        model.use_dtype(dtype, for_good=False)
        with torch.inference_mode():
            outputs = model.forward(proofs)
        reference = outputs if reference is None else reference
        agreements[dtype] = model.agreement(reference, outputs)
    seconds = _timed(model, device)
    return [Trial(dtype=dtype, seconds=seconds[dtype], agreement=agreements[dtype]) for dtype in agreements]


def _timed(model: Any, device: str) -> dict[str, float]:
    """Seconds of the fastest pass in each dtype. They take turns, so that what else the machine does touches all of
    them, and one that is far behind in the first turn has no second."""
    items = model.samples(TRIAL_COST)
    seconds: dict[str, float] = dict.fromkeys((FULL, *model.dtypes), math.inf)
    for _ in range(TRIALS):
        for dtype, best in seconds.items():
            if best == math.inf or best <= HOPELESS * min(seconds.values()):
                model.use_dtype(dtype, for_good=False)
                seconds[dtype] = min(best, run_alone(model, items, device))
    return seconds
