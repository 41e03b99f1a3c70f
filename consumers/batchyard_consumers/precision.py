"""What a model computes in, and how: as asked, or by `auto` the fastest that stays close to float32.

A runtime that can compute in other dtypes than float32 defines

- `dtypes`: their names, such as `("bfloat16", "float16", "int8")`;
- `use_dtype(name, for_good=…)`: bring the weights there; any number of times until it is for good;
- `proofs() -> list`: inputs to compare results on, other than `samples`;
- `agreement(reference, outputs) -> float`: of the outputs of one forward pass over them, 1.0 where they are the same;
- `tolerance`: the least agreement that is taken; a model's option of that name goes before it.

One that brings its weights to `self.dtype` in `load`, by itself, defines `dtypes` alone. What `compiling.py` says makes
it one that can be compiled, too. Int8 is proven even where it is asked for by name, for rounded weights may fit a model
or not; a compiled pass as well.
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
from batchyard_consumers import compiling
from batchyard_consumers.device import run_alone
from batchyard_consumers.int8 import quantize

FULL = "float32"
PROVEN = "int8"
"""Compared with float32 wherever it is used. It saves memory and never time, for its weights are brought to a floating
dtype for each pass: `auto` leaves it out."""
GAIN = 1.1
"""How much faster than the simpler one is worth another dtype, or compiling."""
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


def narrow(module: Any, dtype: torch.dtype, device: str) -> None:
    """Bring all of a module to that dtype; where it is int8, the weights of its linear layers."""
    if dtype is torch.int8:
        quantize(module, device=device)
    else:
        module.to(dtype)


def narrowed(module: Any, dtype: torch.dtype, device: str) -> Any:
    """A copy of the module in that dtype."""
    made = copy.deepcopy(module)
    narrow(made, dtype, device)
    return made


class InDtypes:
    """The weights of a module in each dtype that is tried; `make` makes the copies."""

    def __init__(self, device: str, make: Callable[[Any, torch.dtype, str], Any] = narrowed) -> None:
        self._device = device
        self._make = make
        self._modules: dict[str, Any] = {}

    def use(self, module: Any, name: str, *, for_good: bool) -> Any:
        """The module in that dtype; the first that comes is in float32. For good, the others are forgotten."""
        full = self._modules.setdefault(FULL, module)
        if name not in self._modules:
            self._modules[name] = self._make(full, getattr(torch, name), self._device)
        found = self._modules[name]
        if for_good:
            self._modules.clear()
        return found


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One dtype, tried, or one of them compiled."""

    dtype: str
    seconds: float
    """Of the fastest of a few passes over the same items."""
    agreement: float
    """With float32."""


def choose(trials: Sequence[Trial], *, tolerance: float) -> Trial:
    """The fastest that agrees, where it gains enough over the first of the trials, which needs no proof."""
    full = trials[0]
    agreeing = [trial for trial in trials[1:] if trial.agreement >= tolerance and trial.seconds * GAIN <= full.seconds]
    return min(agreeing, key=lambda trial: trial.seconds, default=full)


def settle(model: Model, *, name: str, device: str) -> str:
    """Bring a loaded model to the dtype that it was asked for, and compile it where that was asked for; what was picked
    and why, for people. ModelLoadError."""
    wanted = model.dtype
    dtypes = getattr(model, "dtypes", ())
    if wanted not in ("auto", FULL, *dtypes):
        allowed = ", ".join(("auto", FULL, *dtypes))
        raise ModelLoadError(f"{name}: dtype is {wanted!r}; with its runtime it may be {allowed}")
    may_compile = isinstance(model, Convertible) and isinstance(model, compiling.Compilable)
    if model.compile == "on" and not may_compile:
        raise ModelLoadError(f'{name}: compile is "on"; with its runtime it may be "off"')
    if not isinstance(model, Convertible):
        return wanted if dtypes else FULL
    if wanted not in ("auto", PROVEN) and model.compile == "off":
        model.use_dtype(wanted, for_good=True)
        return wanted
    bench = Bench(model, device)
    said, dtype = _settle_dtype(bench, name=name)
    if model.compile != "off" and may_compile:
        said += f", {_settle_compiling(bench, name=name)}"
    model.use_dtype(dtype, for_good=True)
    return said


class Bench:
    """Forms of one model, tried on the same proofs and the same samples."""

    def __init__(self, model: Any, device: str) -> None:
        self.model = model
        self.device = device
        self.tolerance = float(model.options.get("tolerance", model.tolerance))
        self._proofs = model.preprocess(model.proofs(), {})
        model.use_dtype(FULL, for_good=False)
        self._reference = self._outputs()

    def agreement(self) -> float:
        """With float32, of the form that the model is in now."""
        found: float = self.model.agreement(self._reference, self._outputs())
        return found

    def dtypes(self) -> list[Trial]:
        """float32 and every other dtype that may be faster."""
        agreements: dict[str, float] = {}
        for dtype in (FULL, *[other for other in self.model.dtypes if other != PROVEN]):
            self.model.use_dtype(dtype, for_good=False)
            agreements[dtype] = self.agreement()
        seconds = self.timed({dtype: self._use(dtype) for dtype in agreements})
        return [Trial(dtype=dtype, seconds=seconds[dtype], agreement=agreements[dtype]) for dtype in agreements]

    def timed(self, forms: dict[str, Callable[[], None]]) -> dict[str, float]:
        """Seconds of the fastest pass in each form, which its function brings about. They take turns, so that what else
        the machine does touches all of them, and one that is far behind in the first turn has no second."""
        items = self.model.samples(TRIAL_COST)
        seconds = dict.fromkeys(forms, math.inf)
        for _ in range(TRIALS):
            for name, best in seconds.items():
                if best == math.inf or best <= HOPELESS * min(seconds.values()):
                    forms[name]()
                    seconds[name] = min(best, run_alone(self.model, items, self.device))
        return seconds

    def _use(self, dtype: str) -> Callable[[], None]:
        return lambda: self.model.use_dtype(dtype, for_good=False)

    def _outputs(self) -> Any:
        with torch.inference_mode():
            return self.model.forward(self._proofs)


def _settle_dtype(bench: Bench, *, name: str) -> tuple[str, str]:
    """What to say and the dtype, which the model is in."""
    wanted = bench.model.dtype
    if wanted == "auto":
        trials = bench.dtypes()
        chosen = choose(trials, tolerance=bench.tolerance).dtype
        others = [
            f"{trial.dtype} {trials[0].seconds / trial.seconds:.2f} times as fast, agreement {trial.agreement:.4f}"
            for trial in trials[1:]
        ]
        bench.model.use_dtype(chosen, for_good=False)
        return f"{chosen} ({'; '.join(others)})", chosen
    bench.model.use_dtype(wanted, for_good=False)
    if wanted != PROVEN:
        return wanted, wanted
    agreement = bench.agreement()
    if not agreement >= bench.tolerance:
        raise ModelLoadError(
            f"{name}: with dtype {wanted!r} it agrees with float32 to {agreement:.4f}, and {bench.tolerance:g} is "
            "asked for: take another dtype, or set its option tolerance to what your use of it bears"
        )
    return f"{wanted} (agreement {agreement:.4f})", wanted


def _settle_compiling(bench: Bench, *, name: str) -> str:
    """Compile the model in the dtype that it is in, or say why it is not compiled. ModelLoadError where it must be."""
    model = bench.model
    try:
        compiling.begin(model)
        compiling.warm(model, bench.device)
        agreement = bench.agreement()
        seconds = bench.timed({"plain": lambda: compiling.pause(model), "compiled": lambda: compiling.resume(model)})
    except Exception as error:  # noqa: BLE001  a compiler may raise anything, and there may be none
        compiling.end(model)
        return _uncompiled(bench, f"it failed: {_in_a_line(error)}", name=name)
    plain = Trial(dtype="plain", seconds=seconds["plain"], agreement=1.0)
    compiled = Trial(dtype="compiled", seconds=seconds["compiled"], agreement=agreement)
    found = f"{plain.seconds / compiled.seconds:.2f} times as fast, agreement {agreement:.4f}"
    agrees = agreement >= bench.tolerance
    if agrees if model.compile == "on" else choose([plain, compiled], tolerance=bench.tolerance) is compiled:
        compiling.resume(model)
        return f"compiled ({found})"
    compiling.end(model)
    return _uncompiled(bench, found, name=name)


def _uncompiled(bench: Bench, reason: str, *, name: str) -> str:
    if bench.model.compile == "on":
        raise ModelLoadError(f'{name}: compile is "on", but {reason}; "auto" goes on without')
    return f"not compiled ({reason})"


def _in_a_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
