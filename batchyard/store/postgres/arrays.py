"""Whole columns as PostgreSQL arrays in their binary form, built without a Python object per element.

The wire form of an array is a header and, per element, its length (-1 for NULL) before its bytes, all big-endian.
psycopg would dump each element of a list by itself, at about a microsecond; these take about 50 nanoseconds.
An array of no elements stands for a column that is NULL throughout: `unnest` pads the shorter of its arrays.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

from psycopg import Connection
from psycopg.adapt import Dumper
from psycopg.pq import Format

_HEADER = struct.Struct(">iiIii")
_EMPTY = struct.Struct(">iiI")
_LENGTH = struct.Struct(">i")
_INT4, _INT8, _BYTEA, _TEXT = 23, 20, 17, 25

# Lengths as they stand on the wire; as machine integers they are copied about and never computed with.
_FOUR = array("i", _LENGTH.pack(4))
_EIGHT = array("i", _LENGTH.pack(8))
_NULL = _LENGTH.pack(-1)
_LENGTHS = [_LENGTH.pack(length) for length in range(4096)]


class Int4Array(bytes):
    """An `int4[]`, ready to send."""


class Int8Array(bytes):
    """An `int8[]`, ready to send."""


class ByteaArray(bytes):
    """A `bytea[]`, ready to send."""


class TextArray(bytes):
    """A `text[]`, ready to send."""


def int4s(values: Iterable[int]) -> Int4Array:
    """Integers of 32 bits; OverflowError beyond."""
    numbers = array("i", values)
    _to_wire(numbers)
    out = _FOUR * (2 * len(numbers))
    out[1::2] = numbers
    return Int4Array(_header(_INT4, len(numbers)) + out.tobytes())


def int8s(values: Iterable[int]) -> Int8Array:
    """Integers of 64 bits; OverflowError beyond."""
    numbers = array("q", values)
    _to_wire(numbers)
    halves = array("i", numbers.tobytes())
    out = _EIGHT * (3 * len(numbers))
    out[1::3] = halves[0::2]
    out[2::3] = halves[1::2]
    return Int8Array(_header(_INT8, len(numbers)) + out.tobytes())


def int4_runs(runs: Iterable[tuple[int, int]]) -> Int4Array:
    """Integers of 32 bits given as runs: `(value, how often in a row)`."""
    parts = [b""]
    total = 0
    for value, count in runs:
        total += count
        parts.append(struct.pack(">ii", 4, value) * count)
    parts[0] = _header(_INT4, total)
    return Int4Array(b"".join(parts))


NO_INT8S = Int8Array(_EMPTY.pack(0, 0, _INT8))
"""A column that is NULL throughout."""
_NO_BYTEAS = ByteaArray(_EMPTY.pack(0, 0, _BYTEA))
_NO_TEXTS = TextArray(_EMPTY.pack(0, 0, _TEXT))


def optional_int8s(values: Sequence[int | None]) -> Int8Array:
    """Integers of 64 bits, None as NULL; struct.error beyond."""
    if values.count(None) == len(values):
        return NO_INT8S
    return Int8Array(_optional(_INT8, [None if value is None else struct.pack(">q", value) for value in values]))


def byteas(bodies: Sequence[bytes]) -> ByteaArray:
    """Byte strings."""
    return ByteaArray(_header(_BYTEA, len(bodies)) + _with_lengths(bodies))


def optional_byteas(bodies: Sequence[bytes | None]) -> ByteaArray:
    """Byte strings, None as NULL."""
    if bodies.count(None) == len(bodies):
        return _NO_BYTEAS
    return ByteaArray(_optional(_BYTEA, bodies))


def optional_texts(texts: Sequence[str | None]) -> TextArray:
    """Strings, None as NULL."""
    if texts.count(None) == len(texts):
        return _NO_TEXTS
    return TextArray(_optional(_TEXT, [None if text is None else text.encode() for text in texts]))


def register(connection: Connection[Any]) -> None:
    """Teach a connection to send these arrays as they are."""
    for kind, oid in ((Int4Array, 1007), (Int8Array, 1016), (ByteaArray, 1001), (TextArray, 1009)):
        connection.adapters.register_dumper(kind, _dumper(oid))


def _dumper(array_oid: int) -> type[Dumper]:
    class AsItIs(Dumper):
        format = Format.BINARY
        oid = array_oid

        def dump(self, obj: bytes) -> bytes:
            return obj

    return AsItIs


def _header(oid: int, count: int, *, nulls: bool = False) -> bytes:
    # One dimension from index 1; an empty array has none.
    return _HEADER.pack(1, nulls, oid, count, 1) if count else _EMPTY.pack(0, 0, oid)


def _to_wire(numbers: array[int]) -> None:
    if sys.byteorder == "little":
        numbers.byteswap()


def _with_lengths(bodies: Sequence[bytes]) -> bytes:
    parts = [b""] * (2 * len(bodies))
    parts[1::2] = bodies
    try:
        parts[0::2] = map(_LENGTHS.__getitem__, map(len, bodies))
    except IndexError:
        parts[0::2] = [_LENGTH.pack(len(body)) for body in bodies]
    return b"".join(parts)


def _optional(oid: int, bodies: Sequence[bytes | None]) -> bytes:
    parts = [_NULL if body is None else _LENGTH.pack(len(body)) + body for body in bodies]
    return _header(oid, len(parts), nulls=True) + b"".join(parts)
