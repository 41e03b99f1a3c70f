"""Reading what a request carries: bounded in bytes and in time, strict in form."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import TypeVar

import msgspec
from starlette.requests import Request

from batchyard import strict_json
from batchyard.errors import InvalidRequest, TooLarge
from batchyard.schemas import split_fault
from batchyard_producer.calls import Asked

SMALL_BYTES = 1024 * 1024
"""The most that a request without inputs may carry."""
STALL_SECONDS = 30.0
"""How long a body may pause before the request is given up."""
MAX_KEY_CHARACTERS = 255

T = TypeVar("T", bound=msgspec.Struct)


async def chunks(request: Request, *, max_bytes: int) -> AsyncIterator[bytes]:
    """The pieces of a body as they come; TooLarge at the first byte too many, InvalidRequest when it stalls."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise InvalidRequest("bodies are taken as they are: send no Content-Encoding", allowed=["identity"])
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    size = 0
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(STALL_SECONDS):
                chunk = await anext(stream, None)
        except TimeoutError as error:
            raise InvalidRequest(f"the body paused for more than {STALL_SECONDS:.0f} s") from error
        if chunk is None:
            return
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        if chunk:
            yield chunk


async def read_struct(asked: Asked, kind: type[T], *, absent: T | None = None) -> T:
    """A small JSON body as the struct that describes it, or what no body stands for; InvalidRequest names the place of
    a fault."""
    body = await read_small(asked)
    if not body and absent is not None:
        return absent
    try:
        document = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        fault, pointer = split_fault(error)
        raise InvalidRequest(f"{fault} (at {pointer or 'the top'})", pointer=pointer) from error
    except RecursionError as error:
        raise strict_json.too_deep() from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise strict_json.malformed(error) from error
    strict_json.walk(strict_json.decode(body))
    strict_json.refuse_repeated_members(body, members=[f'"{name}"'.encode() for name in kind.__struct_fields__])
    return document


async def read_small(asked: Asked) -> bytes:
    """A small body, undecoded; Unavailable where the process has no room for it. What is slow is its coming, so that
    is when it counts."""
    room, pieces = asked.services.room, []
    try:
        async for chunk in chunks(asked.request, max_bytes=SMALL_BYTES):
            room.take(len(chunk))
            pieces.append(chunk)
    finally:
        room.give_back(sum(map(len, pieces)))
    return b"".join(pieces)


def idempotency_key(request: Request) -> str | None:
    """The Idempotency-Key header; InvalidRequest where it is longer than 255 or not printable ASCII."""
    key: str | None = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= MAX_KEY_CHARACTERS or not key.isascii() or not key.isprintable():
        raise InvalidRequest(f"Idempotency-Key must be 1 to {MAX_KEY_CHARACTERS} printable ASCII characters")
    return key


def whole_number(text: str | None, *, name: str, default: int, least: int, most: int) -> int:
    """A whole number of the query."""
    if text is None:
        return default
    if not text.isdecimal() or not text.isascii() or not least <= int(text[:20]) <= most:
        raise InvalidRequest(f'{name} is "{text[:32]}"; it must be a whole number from {least} to {most}')
    return int(text)


def seconds(text: str | None, *, name: str, most: float) -> float:
    """A duration of the query, cut to `most`; 0 where not given."""
    if text is None:
        return 0.0
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise InvalidRequest(f'{name} is "{text[:32]}"; it must be a number of seconds, 0 or more')
    return min(value, most)


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"the body has more than {max_bytes} bytes", limit=max_bytes)
