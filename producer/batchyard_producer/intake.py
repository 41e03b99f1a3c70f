"""Reads requests and writes answers over raw ASGI, within the limits of size and time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, NoReturn, TypeVar
from urllib.parse import parse_qs

from batchyard.errors import InvalidRequest, TooLarge, Unavailable
from batchyard.schemas import MAX_WAIT_SECONDS
from batchyard_producer.connections import answer_at_once, unread
from batchyard_producer.problems import Headers, Send

Receive = Callable[[], Awaitable[Any]]
Scope = dict[str, Any]
T = TypeVar("T")

BODY_SECONDS = 60.0
"""The longest that one piece of a body may take to come."""
MAX_KEY_BYTES = 255
LARGE_ANSWER_BYTES = 64 * 1024
"""What a connection holds for a reader without being asked whether there is room."""
ROOM_SECONDS = 0.1
"""Between two looks for room for a piece of an answer."""
ROOM_BODIES = 8
LEAST_ROOM_BYTES = 64 * 1024 * 1024

JSON_HEADERS: Headers = [(b"content-type", b"application/json")]


class Gone(Exception):
    """The client hung up; there is nobody to answer."""


class Room:
    """What the bodies of all requests of this process may take up in memory: that of eight as large as one may be, or
    of any number of smaller ones, and never less than 64 MiB. Counted by the bytes that have come. Owned by the event
    loop."""

    __slots__ = ("_limit_bytes", "taken_bytes")

    def __init__(self, *, max_body_bytes: int) -> None:
        self._limit_bytes = max(ROOM_BODIES * max_body_bytes, LEAST_ROOM_BYTES)
        self.taken_bytes = 0

    def take(self, size: int) -> None:
        """Unavailable where that is more than is left."""
        if self.taken_bytes + size > self._limit_bytes:
            raise Unavailable(
                f"other requests' bodies fill the {self._limit_bytes} bytes that this process has for them: try again",
                retry_after_seconds=1,
            )
        self.taken_bytes += size

    def give_back(self, size: int) -> None:
        self.taken_bytes -= size


class Request:
    """One request on the raw routes. `status` is that of its answer, 0 before it has begun."""

    __slots__ = (
        "_named",
        "_query",
        "_room",
        "_send",
        "_taken_bytes",
        "headers",
        "method",
        "path",
        "receive",
        "scope",
        "status",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, room: Room) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: Headers = scope["headers"]
        self.receive = receive
        self.status = 0
        self._send = send
        self._room = room
        self._taken_bytes = 0
        self._named: dict[bytes, bytes] = dict(self.headers)
        self._query: dict[str, list[str]] | None = None

    # --- reading ---

    def header(self, name: bytes) -> str | None:
        """The last header of this lower-case name."""
        value = self._named.get(name)
        return None if value is None else value.decode("latin-1")

    def query(self, name: str) -> str | None:
        """The last value given for a parameter of the query string."""
        if self._query is None:
            text = self.scope["query_string"]
            self._query = parse_qs(text.decode("latin-1"), keep_blank_values=True) if text else {}
        values = self._query.get(name)
        return values[-1] if values else None

    def seconds(self, name: str) -> float:
        """A duration from the query string, 0 where it is not given, cut to MAX_WAIT_SECONDS."""
        text = self.query(name)
        return 0.0 if text is None else read_seconds(text, what=f"the parameter `{name}`")

    def preferred_wait(self) -> float:
        """N of `Prefer: wait=N`; 0 without one. A preference that cannot be read is passed over, as RFC 7240 wants."""
        text = self.header(b"prefer")
        for preference in text.split(",") if text else ():
            name, _, value = preference.strip().partition("=")
            if name.lower() == "wait" and value.isdecimal():
                return min(float(value), MAX_WAIT_SECONDS)
        return 0.0

    def idempotency_key(self) -> str | None:
        text = self.header(b"idempotency-key")
        if text is None:
            return None
        if not 0 < len(text) <= MAX_KEY_BYTES or not text.isascii() or not text.isprintable():
            raise InvalidRequest(f"the Idempotency-Key must be 1 to {MAX_KEY_BYTES} printable ASCII characters")
        return text

    async def body(self, *, limit: int) -> bytes:
        """The whole body; TooLarge beyond the limit, whatever length was announced; Unavailable without room for it.

        What it takes up is given back by `forget`: until then it may be referred to.
        """
        announced = self._named.get(b"content-length", b"")
        if len(announced) > 4 and announced.isdigit() and int(announced) > limit:
            _too_large(limit)
        if self._named.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            raise InvalidRequest("the body must not be compressed: send it without a Content-Encoding")
        message = await self._piece()
        body: bytes = message["body"]
        if message.get("more_body"):
            pieces, size = [body], len(body)
            while message.get("more_body") and size <= limit:
                message = await self._piece()
                pieces.append(message["body"])
                size += len(message["body"])
            body = b"".join(pieces)
        if len(body) > limit:
            _too_large(limit)
        return body

    def forget(self) -> None:
        """The request is answered."""
        self._room.give_back(self._taken_bytes)
        self._taken_bytes = 0

    async def _piece(self) -> Any:
        """The next piece of the body; Gone, or InvalidRequest where it does not come in time."""
        receiving = _Begun(self.receive())
        if receiving.is_over:
            message = receiving.value
        else:
            try:
                # A timer costs a tenth of a whole request, so only those have one that must wait.
                async with asyncio.timeout(BODY_SECONDS):
                    message = await receiving
            except TimeoutError as error:
                raise InvalidRequest(f"the body stopped: nothing came for {BODY_SECONDS:.0f} s") from error
        if message["type"] == "http.disconnect":
            raise Gone
        size = len(message["body"])
        self._room.take(size)
        self._taken_bytes += size
        return message

    async def unless_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something that may wait for long; Gone, with the work cancelled, once the client hangs up."""
        task = asyncio.ensure_future(work)
        watch = asyncio.ensure_future(self.hang_up())
        try:
            await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Gone
        finally:
            task.cancel()
            watch.cancel()
            await asyncio.gather(task, watch, return_exceptions=True)

    async def hang_up(self) -> None:
        """Return once the client has gone. Only after the body was read."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    # --- answering ---

    async def answer(self, status: int, body: bytes, headers: Headers = JSON_HEADERS) -> None:
        """Answer in one piece; Unavailable where it is large and there is no room for what nobody takes."""
        if len(body) > LARGE_ANSWER_BYTES:
            unread.make_room(len(body))
        self.status = status
        headers = [*headers, (b"content-length", b"%d" % len(body))]
        if answer_at_once(self._send, status, headers, body):
            return
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def begin(self, status: int, headers: Headers) -> None:
        """Begin an answer of unknown length; `piece` goes on with it."""
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def room(self, size: int) -> None:
        """Wait until a piece of about this size may lie unread: who takes nothing of others is cut off in a while."""
        while not unread.has_room(size):  # noqa: ASYNC110  no event tells of it
            await asyncio.sleep(ROOM_SECONDS)

    async def piece(self, body: bytes, *, more: bool = True) -> None:
        """Send some of the body; waits while the client is slow to take it."""
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


class _Begun:
    """A coroutine run up to where it first has to wait; awaiting goes on from there."""

    __slots__ = ("_steps", "_waited", "is_over", "value")

    def __init__(self, work: Awaitable[Any]) -> None:
        self._steps: Generator[Any, Any, Any] = work.__await__()
        self._waited: Any = None
        self.value: Any = None
        try:
            self._waited = next(self._steps)
        except StopIteration as end:
            self.is_over, self.value = True, end.value
        else:
            self.is_over = False

    def __await__(self) -> Generator[Any, Any, Any]:
        try:
            yield self._waited
        except BaseException as error:  # a cancellation: the coroutine must hear of it too
            self._steps.throw(error)
            raise
        return (yield from self._steps)


def read_seconds(text: str, *, what: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InvalidRequest(f"{what} is {text[:40]!r}; it must be a number of seconds, 0 or more")
    return min(seconds, MAX_WAIT_SECONDS)


def _too_large(limit: int) -> NoReturn:
    raise TooLarge(f"the body has more than {limit} bytes", limit=limit)
