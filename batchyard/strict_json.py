"""What JSON may come in: RFC 8259 without its loose ends, checked at the speed of a byte scan. Pure.

Refused: malformed text, NaN and infinities, numbers beyond a double, integers beyond 64 bits, lone surrogates, NUL,
nesting deeper than MAX_DEPTH, and a member given twice in an envelope (the object that our own API defines). msgspec
refuses the first few by itself; for the others a scan over the whole body says whether they are possible at all, and
only then are the decoded values walked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from batchyard.errors import InvalidRequest

MAX_DEPTH = 64

_decode = msgspec.json.Decoder().decode
_DIGITS_AS_ZERO = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBER = b"0" * 19
_LEAST_DEEP = 2 * MAX_DEPTH
"""A shorter text cannot nest deeper than MAX_DEPTH."""


def decode(body: bytes, *, what: str = "the body") -> Any:
    """Decode one JSON document; InvalidRequest where it is malformed. Does not look for what `needs_walk` finds."""
    try:
        return _decode(body)
    except RecursionError as error:
        raise too_deep() from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise malformed(error, what=what) from error


def malformed(error: Exception, *, what: str = "the body") -> InvalidRequest:
    reason = str(error).removeprefix("JSON is malformed: ")
    return InvalidRequest(f"{what} is not valid JSON: {reason}", pointer="")


def too_deep(pointer: str = "") -> InvalidRequest:
    return InvalidRequest(f"the JSON nests deeper than {MAX_DEPTH} levels", pointer=pointer, limit=MAX_DEPTH)


def needs_walk(body: bytes) -> bool:
    """Whether values decoded from this text could hold NUL, or an integer beyond 64 bits. Cheap, and rarely true."""
    return b"\\u0000" in body or _LONG_NUMBER in body.translate(_DIGITS_AS_ZERO)


def may_be_deep(text: bytes) -> bool:
    """Whether this text could nest deeper than MAX_DEPTH."""
    return len(text) > _LEAST_DEEP and text.count(b"[") + text.count(b"{") > MAX_DEPTH


def walk(value: Any, *, pointer: str = "", depth: int = 1) -> None:
    """Raise InvalidRequest, with the JSON pointer of the place, for NUL, integers beyond 64 bits and deep nesting.

    `depth` is the level that `value` itself would open: 1 for a whole document.
    """
    pending: list[tuple[Any, str, int]] = [(value, pointer, depth)]
    while pending:
        item, place, level = pending.pop()
        if isinstance(item, str):
            if "\0" in item:
                raise InvalidRequest("a string holds the NUL character, which cannot be stored", pointer=place)
        elif isinstance(item, int):
            if not -(1 << 63) <= item < 1 << 64:
                raise InvalidRequest("an integer does not fit into 64 bits; send it as a string", pointer=place)
        elif isinstance(item, (list, dict)):
            if level > MAX_DEPTH:
                raise too_deep(place)
            members: Iterable[tuple[Any, Any]] = enumerate(item) if isinstance(item, list) else item.items()
            for key, member in members:
                if isinstance(key, str) and "\0" in key:
                    raise InvalidRequest(
                        "a member's name holds the NUL character, which cannot be stored", pointer=place
                    )
                pending.append((member, f"{place}/{escape(key)}", level + 1))


def escape(step: object) -> str:
    """One step of a JSON pointer."""
    return str(step).replace("~", "~0").replace("/", "~1")


def refuse_repeated_members(body: bytes, *, members: Sequence[bytes]) -> None:
    """InvalidRequest where an envelope, already found to be well-formed, gives one of its members twice.

    `members` are the quoted names. Where no name occurs twice anywhere in the text, and none can be spelled with
    escapes, there is nothing to find; otherwise Python's own parser tells.
    """
    if b"\\u" not in body and all(body.count(member) < 2 for member in members):
        return
    last: list[tuple[str, Any]] = []

    def remember(pairs: list[tuple[str, Any]]) -> None:
        nonlocal last
        last = pairs  # objects are reported inside out: the envelope comes last

    json.loads(body, object_pairs_hook=remember)
    seen: set[str] = set()
    for name, _ in last:
        if name in seen:
            raise InvalidRequest(f'the member "{name}" is given twice', pointer=f"/{escape(name)}")
        seen.add(name)
