"""Tensors inside results: from arrays of NumPy, torch and their like to MessagePack, and on to what readers want.

A tensor is MessagePack extension type 1 holding `[dtype, shape, raw]`: NumPy's name of the dtype, the list of
dimensions, and the elements in C order, little-endian.
"""

from __future__ import annotations

import base64
import math
import struct
from typing import Any, Final

import msgspec

from batchyard.errors import BadOutput

TENSOR_EXTENSION: Final = 1
"""The MessagePack extension type of a tensor."""

_CODES: Final[dict[str, str]] = {
    "bool": "?",
    "int8": "b",
    "int16": "h",
    "int32": "i",
    "int64": "q",
    "uint8": "B",
    "uint16": "H",
    "uint32": "I",
    "uint64": "Q",
    "float16": "e",
    "float32": "f",
    "float64": "d",
}
"""The dtypes that a tensor may have, with the letter that `struct` gives each."""


class Tensor(msgspec.Struct, frozen=True, array_like=True):
    """A tensor as stored."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes
    """Elements in C order, little-endian."""


def is_tensor(value: Any) -> bool:
    """Whether a value is an array with at least one dimension; those without are scalars."""
    return hasattr(value, "__array__") and bool(value.shape)


def to_array(value: Any) -> Any:
    """A finite little-endian NumPy array of an allowed dtype, in C order; no copy where it is one already."""
    array = _as_numpy(value)
    dtype = array.dtype
    if dtype not in _allowed_dtypes:
        if dtype.name not in _CODES:
            raise BadOutput(f"a tensor of dtype {dtype.name} cannot be stored; allowed are {', '.join(_CODES)}")
        _allowed_dtypes.add(dtype)
    if dtype.kind == "f" and not _is_finite(array):
        raise BadOutput(f"a tensor of the result ({dtype.name}, shape {list(array.shape)}) holds NaN or infinity")
    return array


_allowed_dtypes: set[Any] = set()
"""Those seen so far: asking NumPy for a dtype's name costs more than all the rest."""


def _as_numpy(value: Any) -> Any:
    if hasattr(value, "detach"):
        value = value.detach()
        try:
            value = value.numpy()
        except TypeError:  # bfloat16 has no counterpart in NumPy
            value = value.float().numpy()
    elif not hasattr(value, "tobytes"):
        value = value.__array__()
    return value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))


def _is_finite(array: Any) -> bool:
    import numpy as np

    # Half the time of `.all()`; a dot product would be faster still, but warns where a square overflows.
    return 0 not in np.isfinite(array).tobytes()


def document_of(array: Any) -> bytes:
    """The MessagePack document that is this array, as `to_array` gave it, and nothing else."""
    payload = payload_of(array)
    return extension_header(len(payload)) + payload


def payload_of(array: Any) -> bytes:
    """What the extension holds."""
    data: bytes = array.tobytes()
    return payload_header(array.dtype, array.shape, len(data)) + data


_payload_headers: dict[tuple[Any, ...], bytes] = {}


def payload_header(dtype: Any, shape: tuple[int, ...], size: int) -> bytes:
    """MessagePack of `[dtype, shape, raw]` up to the raw bytes; results of one model mostly share it."""
    key = (dtype, shape)
    header = _payload_headers.get(key)
    if header is None:
        if len(_payload_headers) >= 1024:
            _payload_headers.clear()
        header = b"\x93" + _encode(dtype.name) + _encode(shape) + _binary_header(size)
        _payload_headers[key] = header
    return header


_encode = msgspec.msgpack.Encoder().encode


def _binary_header(size: int) -> bytes:
    if size < 1 << 8:
        return struct.pack(">BB", 0xC4, size)
    return struct.pack(">BH", 0xC5, size) if size < 1 << 16 else struct.pack(">BI", 0xC6, size)


def extension_header(size: int) -> bytes:
    """MessagePack of the extension up to what it holds, of this many bytes."""
    if size < 1 << 8:
        return struct.pack(">BBb", 0xC7, size, TENSOR_EXTENSION)
    if size < 1 << 16:
        return struct.pack(">BHb", 0xC8, size, TENSOR_EXTENSION)
    return struct.pack(">BIb", 0xC9, size, TENSOR_EXTENSION)


def as_lists(tensor: Tensor) -> Any:
    """Nested lists, without NumPy."""
    count = math.prod(tensor.shape)
    values: Any = struct.unpack(f"<{count}{_CODES[tensor.dtype]}", tensor.data)
    for dimension in reversed(tensor.shape[1:]):
        values = [list(values[start : start + dimension]) for start in range(0, len(values), dimension)]
    return list(values)


def as_base64(tensor: Tensor) -> dict[str, Any]:
    """The raw elements in base64, with what tells how to read them."""
    return {"$tensor": base64.b64encode(tensor.data).decode(), "dtype": tensor.dtype, "shape": tensor.shape}


def as_array(tensor: Tensor) -> Any:
    """A NumPy array of its own memory."""
    import numpy as np

    # A copy: the caller may write to it, and it does not keep a whole stream of results alive.
    return np.frombuffer(tensor.data, dtype=np.dtype(tensor.dtype).newbyteorder("<")).reshape(tensor.shape).copy()


def as_numbers(tensor: Tensor) -> Any:
    """Nested lists with short decimals: a float32 widened to 64 bits would print 17 digits where nine name it."""
    if tensor.dtype != "float32" or not tensor.data:
        return as_lists(tensor)
    import numpy as np

    exact = np.frombuffer(tensor.data, dtype="<f4")
    shown = exact.astype(np.float64)
    exponent = np.floor(np.log10(np.abs(shown), where=shown != 0, out=np.zeros_like(shown)))
    for digits in (9, 8, 7):
        scale = 10.0 ** (digits - 1 - exponent)
        short = np.rint(shown * scale) / scale
        with np.errstate(over="ignore"):
            shown = np.where(short.astype(np.float32) == exact, short, shown)
    return shown.reshape(tensor.shape).tolist()
