"""Connections: in bytes and in time what may come before a request is there to be answered, and what may lie unread.

uvicorn bounds none of that with the faster of its parsers: a head without an end would fill the memory, a client that
says nothing would keep its connection for ever, and so would answers that nobody takes.
"""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from batchyard.errors import Unavailable
from batchyard_producer.problems import Headers, Send

MAX_HEAD_BYTES = 64 * 1024
"""Of a request line with its headers; of the trailers and extensions around a chunk of a body too."""
HEAD_SECONDS = 20.0
"""How long a head may take to come, the first from the moment of connecting. Also how long a body goes on being read
whose request was answered before its end."""

UNREAD_BYTES = 256 * 1024 * 1024
"""Of all answers that are written and that their readers have not taken yet."""
LOOK_SECONDS = 10.0
LEAST_TAKEN_BYTES = 32 * 1024
"""Who takes less of an answer than this between two looks at it is cut off."""

_TOO_LARGE = b"The request line and its headers have more than %d bytes." % MAX_HEAD_BYTES
_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
) % (len(_TOO_LARGE), _TOO_LARGE)


class HeadTooLarge(Exception):
    """Makes the parser stop."""


class Unread:
    """The answers of this process that wait for slow readers."""

    def __init__(self) -> None:
        self.connections: set[Connection] = set()
        """Each added and removed by its event loop."""

    def has_room(self, size: int) -> bool:
        """Whether an answer of this size may lie unread too; where it is the only one it may."""
        lying = sum(connection.unread_bytes for connection in tuple(self.connections))
        return not lying or lying + size <= UNREAD_BYTES

    def make_room(self, size: int) -> None:
        """Unavailable where there is none."""
        if not self.has_room(size):
            raise Unavailable(
                "answers that their readers are slow to take fill the memory for them: try again", retry_after_seconds=1
            )


unread = Unread()


class Connection(HttpToolsProtocol):
    """uvicorn's connection within limits. Owned by the event loop."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unclaimed_bytes = 0
        """Come since the last head that was complete and the last piece of a body."""
        self._is_too_large = False
        self._patience: asyncio.TimerHandle | None = None
        """Runs while no request is under way: from there on routes look after their time themselves."""
        self._looked_at_bytes = 0
        self._look: asyncio.TimerHandle | None = None
        """Runs while there is more to take than the system holds for a reader."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._be_patient()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_patience()
        self._stop_looking()
        super().connection_lost(exc)

    @property
    def unread_bytes(self) -> int:
        size: int = self.transport.get_write_buffer_size()
        return size

    def pause_writing(self) -> None:
        super().pause_writing()
        unread.connections.add(self)
        self._look_later()

    def resume_writing(self) -> None:
        self._stop_looking()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        self._unclaimed_bytes += len(data)
        super().data_received(data)
        if self._is_idle():
            self._be_patient()
        elif self._patience is not None:
            self._stop_patience()
        if self._unclaimed_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse()

    def on_headers_complete(self) -> None:
        # What came with the head, of its body or of a request before, counts as unclaimed too.
        if self._unclaimed_bytes > MAX_HEAD_BYTES and self._head_bytes() > MAX_HEAD_BYTES:
            self._is_too_large = True
            raise HeadTooLarge
        self._unclaimed_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unclaimed_bytes = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """The parser has stopped, by itself or by us."""
        if self._is_too_large:
            self._refuse()
        else:
            super().send_400_response(msg)

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + len(b": \r\n") for name, value in self.headers)

    def _refuse(self) -> None:
        if self._is_idle():
            self.transport.write(_REFUSAL)
        self.transport.close()

    def _is_idle(self) -> bool:
        """No request is under way: none has begun yet, or the last one is answered."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def _be_patient(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)

    def _look_later(self) -> None:
        self._looked_at_bytes = self._left_bytes()
        self._look = self.loop.call_later(LOOK_SECONDS, self._look_at_reader)

    def _look_at_reader(self) -> None:
        if self._looked_at_bytes - self._left_bytes() < LEAST_TAKEN_BYTES:
            self.transport.abort()
        else:
            self._look_later()

    def _left_bytes(self) -> int:
        """What the reader has not taken, here and in the system, which takes megabytes from us at a time."""
        with suppress(OSError):
            told = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
            return self.unread_bytes + int.from_bytes(told, sys.byteorder)
        return self.unread_bytes

    def _stop_looking(self) -> None:
        unread.connections.discard(self)
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _stop_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


def answer_at_once(send: Send, status: int, headers: Headers, body: bytes) -> bool:
    """Write a whole answer in one piece; False, with nothing written, where that takes uvicorn's own steps.

    `headers` are ours, in lower case, with the length among them: uvicorn's examination of each would cost a tenth of a
    request.
    """
    cycle = getattr(send, "__self__", None)
    if (
        type(cycle) is not RequestResponseCycle
        or cycle.response_started
        or cycle.disconnected
        or cycle.flow.write_paused
        or not cycle.keep_alive
    ):
        return False
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    lines = [b"%b: %b\r\n" % header for header in (*cycle.default_headers, *headers)]
    cycle.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[status], b"".join(lines), body))
    cycle.message_event.set()
    cycle.on_response()
    return True
