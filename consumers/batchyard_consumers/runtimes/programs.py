"""The runtimes `torchscript` and `torch-export`: a compiled program with a declared input.

The option `inputs` declares what one job brings, in the order of the program's arguments:

    [models.scorer.options.inputs]
    features = { dtype = "float32", shape = [16] }
    tokens = { dtype = "int64", shape = [-1] }       # -1: of any length, padded with zeros to the batch's longest

An input is an object of these names, each a (nested) array, or the array itself where only one is declared. The
program is called with tensors that have the batch as their first dimension, which an exported program must have
declared as dynamic, and answers with a tensor, or a tuple or dict of tensors, of the same first dimension.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from batchyard.errors import InvalidInput
from batchyard.model import Model

DTYPES = ("float32", "float16", "float64", "int64", "int32", "uint8", "bool")
SAMPLE_LENGTH = 32

Arrays = dict[str, np.ndarray[Any, Any]]


class _Program(Model):
    _program: Any
    _device: str

    def load(self, device: str) -> None:
        self._inputs = _declared(self.options)
        self._device = device
        if not Path(self.source).is_file():
            raise ValueError(f"source is {self.source!r}: the program's file was not found")
        self._program = self._read(device)
        variable = any(-1 in given["shape"] for given in self._inputs.values())
        self.cost_unit = "elements" if variable else "jobs"  # type: ignore[misc]  # of this instance
        self.input_schema = _schema(self._inputs)  # type: ignore[misc]  # of this instance

    def _read(self, device: str) -> Any:
        raise NotImplementedError

    def preprocess(self, inputs: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
        return [self._arrays(value) for value in inputs]

    def cost(self, item: Arrays) -> int:
        """The longest of its variable dimensions; 1 where there is none."""
        return max(
            (item[name].shape[axis] for name, given in self._inputs.items() for axis in _variable(given)), default=1
        )

    def forward(self, items: Sequence[Arrays]) -> Any:
        """Tensors on the CPU, the batch as their first dimension."""
        arguments = [self._stacked(name, [item[name] for item in items]) for name in self._inputs]
        return _on_cpu(self._program(*arguments))

    def postprocess(self, outputs: Any) -> Sequence[Any]:
        if isinstance(outputs, torch.Tensor):
            return outputs  # type: ignore[return-value]  # its rows are the results
        named = outputs if isinstance(outputs, dict) else {f"output_{place}": one for place, one in enumerate(outputs)}
        return [dict(zip(named, row, strict=True)) for row in zip(*named.values(), strict=True)]

    def samples(self, cost: int) -> list[Any]:
        """Items to warm up with."""
        item = {
            name: np.zeros([SAMPLE_LENGTH if size == -1 else size for size in given["shape"]], given["dtype"])
            for name, given in self._inputs.items()
        }
        return [item] * max(1, cost // self.cost(item))

    def _arrays(self, value: Any) -> Arrays | InvalidInput:
        alone = len(self._inputs) == 1 and not isinstance(value, dict)
        given = {next(iter(self._inputs)): value} if alone else value
        if not isinstance(given, dict) or given.keys() != self._inputs.keys():
            return InvalidInput(f"an input is an object of {', '.join(self._inputs)}")
        try:
            return {name: _array(name, given[name], declared) for name, declared in self._inputs.items()}
        except InvalidInput as misfit:
            return misfit

    def _stacked(self, name: str, arrays: Sequence[np.ndarray[Any, Any]]) -> torch.Tensor:
        if _variable(self._inputs[name]):
            shape = [max(sizes) for sizes in zip(*(array.shape for array in arrays), strict=True)]
            stacked = np.zeros((len(arrays), *shape), arrays[0].dtype)
            for row, array in enumerate(arrays):
                stacked[row][tuple(slice(0, size) for size in array.shape)] = array
        else:
            stacked = np.stack(arrays)
        return torch.from_numpy(stacked).to(self._device, non_blocking=True)


class TorchScript(_Program):
    """A program of `torch.jit.save`."""

    def _read(self, device: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's, about a format that is still in use
            return torch.jit.load(self.source, map_location=device).eval()  # type: ignore[no-untyped-call]


class TorchExport(_Program):
    """A program of `torch.export.save`, on the device that it was exported for."""

    def _read(self, device: str) -> Any:
        return torch.export.load(self.source).module()


def _declared(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The option `inputs`, checked. ValueError."""
    inputs = options.get("inputs")
    if not isinstance(inputs, dict) or not inputs:
        raise ValueError('the option inputs is missing: a table such as {x = {dtype = "float32", shape = [16]}}')
    for name, given in inputs.items():
        shape = given.get("shape") if isinstance(given, dict) else None
        if not isinstance(shape, list) or any(not isinstance(size, int) or size < -1 or size == 0 for size in shape):
            raise ValueError(f"inputs.{name}.shape is {shape!r}: a list of sizes from 1, or -1 for any")
        if given.get("dtype", "float32") not in DTYPES:
            raise ValueError(f"inputs.{name}.dtype is {given['dtype']!r}: one of {', '.join(DTYPES)}")
    return {name: {"dtype": "float32", **given} for name, given in inputs.items()}


def _variable(declared: Mapping[str, Any]) -> list[int]:
    return [axis for axis, size in enumerate(declared["shape"]) if size == -1]


def _schema(inputs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """JSON Schema of one input."""
    arrays = {name: _array_schema(given["shape"], given["dtype"]) for name, given in inputs.items()}
    several = {"type": "object", "properties": arrays, "required": list(arrays), "additionalProperties": False}
    return {"anyOf": [*arrays.values(), several]} if len(arrays) == 1 else several


def _array_schema(shape: Sequence[int], dtype: str) -> dict[str, Any]:
    if not shape:
        return {"type": "boolean" if dtype == "bool" else "number" if dtype.startswith("float") else "integer"}
    bounds = {"minItems": 1} if shape[0] == -1 else {"minItems": shape[0], "maxItems": shape[0]}
    return {"type": "array", **bounds, "items": _array_schema(shape[1:], dtype)}


def _array(name: str, value: Any, declared: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    try:
        array = np.array(value, declared["dtype"])
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(f"{name} is no array of {declared['dtype']}: {error}") from error
    shape = declared["shape"]
    if len(array.shape) != len(shape) or any(
        size not in (-1, found) for size, found in zip(shape, array.shape, strict=True)
    ):
        raise InvalidInput(f"{name} has the shape {list(array.shape)}; declared is {shape}")
    return array


def _on_cpu(outputs: Any) -> Any:
    if isinstance(outputs, torch.Tensor):
        return outputs.cpu()
    if isinstance(outputs, dict):
        return {name: _on_cpu(one) for name, one in outputs.items()}
    if isinstance(outputs, tuple | list):
        return [_on_cpu(one) for one in outputs]
    raise TypeError(
        f"the program answered a {type(outputs).__name__}; allowed are a tensor, a tuple or a dict of tensors"
    )
