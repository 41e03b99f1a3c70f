"""What a job came to, as bytes: how results are encoded by consumers, stored, streamed in bulk and read.

A result is stored as `(format, body)`:

    JSON     one JSON document
    TENSORS  one MessagePack document with tensors in it, see `batchyard.tensors`
    ERROR    the JSON of an `ErrorInfo`

A bulk's results travel to the SDK as `application/x-batchyard-results`, a stream of frames: four bytes, big-endian,
with the length of what follows, then the MessagePack array

    [cursor, finished, [[seq, id, index, state, custom_id, format, body], …], settled]

`cursor` is the number to resume after, and the `seq` of the last record up to there; `finished` is true on the last
frame of a sealed bulk whose jobs are all terminal; `state` is the number of a `State`; `body` is binary, and both
`format` and `body` are nil for a job without a result (cancelled, expired). A frame without records says that the
stream lives, or that the bulk has `settled`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Literal

import msgspec

from batchyard.errors import BadOutput
from batchyard.jobs import ErrorInfo, ResultRow
from batchyard.tensors import (
    TENSOR_EXTENSION,
    Tensor,
    as_array,
    as_base64,
    as_lists,
    as_numbers,
    document_of,
    extension_header,
    is_tensor,
    payload_header,
    payload_of,
    to_array,
)

JSON: Final = 0
TENSORS: Final = 1
ERROR: Final = 2

FRAMES_TYPE: Final = "application/x-batchyard-results"
"""Media type of a bulk's results as a stream of frames."""

TensorRendering = Literal["numbers", "base64"]

# --- encoding: in consumers ----------------------------------------------------------------------------------------


def encode(value: Any) -> tuple[int, bytes]:
    """Turn a result into its stored form.

    `value` is JSON-like and may hold NumPy arrays, torch CPU tensors and whatever else answers `__array__`. Scalars of
    NumPy become numbers; bfloat16 is widened to float32. Raises BadOutput for NaN, infinities, NUL, lone surrogates
    and types that have no stored form.
    """
    try:
        if is_tensor(value):
            return TENSORS, document_of(to_array(value))
        body = _to_json.encode(value)
        if b"\0" not in body and b"null" not in body and b"\\u0000" not in body:
            return JSON, body
        return _encode_with_care(value, body)
    except BadOutput:
        raise
    except (AttributeError, TypeError, ValueError, OverflowError, RecursionError) as problem:
        raise BadOutput(f"the result cannot be stored: {problem}") from problem


def encode_all(values: Any) -> list[tuple[int, bytes] | BadOutput]:
    """Encode the results of one batch, a sequence or an array, in order; a bad one yields its error in its place.

    A matrix of one result per row is checked and copied as a whole.
    """
    rows = _matrix_rows(values)
    if rows is not None:
        return rows
    encoded: list[tuple[int, bytes] | BadOutput] = []
    for value in values:
        try:
            encoded.append(encode(value))
        except BadOutput as problem:
            encoded.append(problem)
    return encoded


def _encode_with_care(value: Any, body: bytes) -> tuple[int, bytes]:
    """The slow way: the first try left a mark that may mean a tensor, NaN (which JSON would show as null) or NUL."""
    if b"null" in body or b"\\u0000" in body:
        _inspect(msgspec.to_builtins(value, enc_hook=_skeleton, str_keys=True))
    if b"\0" in body:
        return TENSORS, _to_msgpack.encode(value)
    return JSON, body


def _inspect(value: Any) -> None:
    """Raise BadOutput where a plain value holds NaN, an infinity or NUL."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadOutput(f"the result holds {value}, which JSON cannot carry")
    elif isinstance(value, str):
        if "\0" in value:
            raise BadOutput("the result holds a NUL character, which cannot be stored")
    elif isinstance(value, dict):
        for key, member in value.items():
            _inspect(key)
            _inspect(member)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for member in value:
            _inspect(member)


def _foreign_to_json(value: Any) -> Any:
    """A raw NUL, which no JSON text contains, marks the place of a tensor."""
    return msgspec.Raw(b"\0") if is_tensor(value) else _scalar(value)


def _foreign_to_msgpack(value: Any) -> Any:
    if not is_tensor(value):
        return _scalar(value)
    return msgspec.msgpack.Ext(TENSOR_EXTENSION, payload_of(to_array(value)))


def _skeleton(value: Any) -> Any:
    return None if is_tensor(value) else _scalar(value)


def _scalar(value: Any) -> Any:
    if hasattr(value, "__array__"):
        return value.item()
    kind = type(value)
    raise TypeError(f"a value of type {kind.__module__}.{kind.__qualname__} is neither JSON nor a tensor")


_to_json = msgspec.json.Encoder(enc_hook=_foreign_to_json)
_to_msgpack = msgspec.msgpack.Encoder(enc_hook=_foreign_to_msgpack)


def _matrix_rows(values: Any) -> list[tuple[int, bytes] | BadOutput] | None:
    """The rows of a matrix of finite numbers, encoded at once; None where `values` is anything else."""
    if not hasattr(values, "__array__") or len(values.shape) < 2 or not len(values):
        return None
    try:
        matrix = to_array(values)
    except BadOutput:
        return None  # row by row then, so that only the guilty row fails
    data = matrix.tobytes()
    size = len(data) // len(matrix)
    header = payload_header(matrix.dtype, matrix.shape[1:], size)
    prefix = extension_header(len(header) + size) + header
    return [(TENSORS, prefix + data[start : start + size]) for start in range(0, len(data), size)]


# --- decoding: in readers ------------------------------------------------------------------------------------------


def decode(kind: int, body: bytes | memoryview, *, numpy: bool = True) -> Any:
    """Turn a stored result back into a value; an ERROR becomes an `ErrorInfo`.

    Tensors become NumPy arrays of their own memory; nested lists where `numpy` is false or NumPy is not installed.
    """
    if kind == JSON:
        return _from_json.decode(body)
    if kind == ERROR:
        return _error_from_json.decode(body)
    return (_with_arrays() if numpy else _with_lists).decode(body)


def to_json(kind: int, body: bytes, *, tensors: TensorRendering = "numbers") -> bytes:
    """Render a stored result as one JSON document.

    Tensors become nested lists of numbers (float32 with the nine digits that name it exactly), or, with "base64",
    `{"$tensor": base64 of the raw elements, "dtype": …, "shape": […]}`.
    """
    if kind != TENSORS:
        return body
    decoder = _with_numbers() if tensors == "numbers" else _with_base64
    return _plain_json.encode(decoder.decode(body))


def to_msgpack(kind: int, body: bytes) -> bytes:
    """Render a stored result as one MessagePack document, tensors as extension type 1."""
    return body if kind == TENSORS else _plain_msgpack.encode(_from_json.decode(body))


def _hook(render: Callable[[Tensor], Any]) -> msgspec.msgpack.Decoder[Any]:
    read = msgspec.msgpack.Decoder(Tensor).decode

    def extension(code: int, data: memoryview) -> Any:
        if code != TENSOR_EXTENSION:
            raise ValueError(f"unknown MessagePack extension type {code} in a result")
        return render(read(data))

    return msgspec.msgpack.Decoder(ext_hook=extension)


_plain_json = msgspec.json.Encoder()
_plain_msgpack = msgspec.msgpack.Encoder()
_from_json = msgspec.json.Decoder()
_error_from_json = msgspec.json.Decoder(ErrorInfo)
_with_lists = _hook(as_lists)
_with_base64 = _hook(as_base64)
_array_decoder = _hook(as_array)
_number_decoder = _hook(as_numbers)


def _with_arrays() -> msgspec.msgpack.Decoder[Any]:
    return _array_decoder if _has_numpy() else _with_lists


def _with_numbers() -> msgspec.msgpack.Decoder[Any]:
    return _number_decoder if _has_numpy() else _with_lists


def _has_numpy() -> bool:
    try:
        import numpy as np  # noqa: F401
    except ImportError:
        return False
    return True


# --- frames: a bulk's results as a stream --------------------------------------------------------------------------


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """A piece of a bulk's results, in the order of completion."""

    cursor: int
    """Resume after this number."""
    finished: bool
    """True where nothing more will follow, now or later."""
    records: Sequence[ResultRow] = ()
    settled: int | None = None
    """The jobs that the bulk has so far, told once all of them have ended and stand before this cursor: one of these
    indexes that has not been sent is no longer kept."""


def pack_frame(frame: Frame) -> bytes:
    """One frame as it travels; about a thousand records are a good size. No Python runs per record."""
    body = _plain_msgpack.encode(frame)
    return struct.pack(">I", len(body)) + body


def unpack_frames(chunks: Iterable[bytes]) -> Iterator[Frame]:
    """Read frames from the pieces of a response's body, however these were cut. A stream cut short ends early."""
    reader = FrameReader()
    for chunk in chunks:
        yield from reader.feed(chunk)


class FrameReader:
    """Cuts a stream into frames. Owned by the one thread or task that reads the stream."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, chunk: bytes) -> list[Frame]:
        """Take the next piece of the stream; return the frames that it completed."""
        pending = self._pending
        pending += chunk
        frames: list[Frame] = []
        start = 0
        while len(pending) - start >= 4:
            (size,) = struct.unpack_from(">I", pending, start)
            end = start + 4 + size
            if end > len(pending):
                break
            # A copy, so that no view pins the buffer while it is cut.
            frames.append(_frame_decoder.decode(bytes(pending[start + 4 : end])))
            start = end
        del pending[:start]
        return frames


_frame_decoder = msgspec.msgpack.Decoder(Frame)
