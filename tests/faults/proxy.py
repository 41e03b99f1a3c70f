"""A proxy between the processes of a run and a server: connections are cut, held up, or lose an answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

CHUNK_BYTES = 256 * 1024


class _Flow(Protocol):
    """What of a connection's transport can be broken off."""

    def abort(self) -> None: ...


class Proxy:
    """Listens on `port` and passes bytes on to a socket file or a port of the loopback. Its loop has its own thread."""

    def __init__(self, upstream: Path | int, host: str) -> None:
        self.port = 0
        self._host = host
        self.lost = 0
        """Answers and requests that were lost."""
        self._upstream = upstream
        self._open: set[_Flow] = set()
        self._answers_to_lose = 0
        self._requests_to_lose = 0
        self._loop = asyncio.new_event_loop()
        self._flows = asyncio.Event()
        self._flows.set()
        self._tasks: set[asyncio.Task[None]] = set()

    # --- any thread ---

    def cut(self) -> None:
        """Break every connection off, in the middle of whatever it carries."""
        self._loop.call_soon_threadsafe(self._cut)

    def hold_up(self) -> None:
        """Let nothing through until `let_through`; connections stay."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def let_through(self) -> None:
        self._loop.call_soon_threadsafe(self._flows.set)

    def lose_answers(self, count: int) -> None:
        """Break connections off at the next answers of the server: what was asked for is done, and nobody knows."""
        self._answers_to_lose = count

    def lose_requests(self, count: int) -> None:
        """Break connections off at the next requests: what was asked for never arrives, and nobody knows."""
        self._requests_to_lose = count

    # --- the loop's thread ---

    def _cut(self) -> None:
        for flow in list(self._open):
            flow.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if isinstance(self._upstream, Path):
                from_server, to_server = await asyncio.open_unix_connection(str(self._upstream))
            else:
                from_server, to_server = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            writer.transport.abort()
            return
        flows: set[_Flow] = {writer.transport, to_server.transport}
        self._open |= flows
        try:
            ways = (self._pump(reader, to_server), self._pump(from_server, writer, answers=True))
            done, rest = await asyncio.wait([asyncio.ensure_future(way) for way in ways], return_when="FIRST_COMPLETED")
            for way in (*done, *rest):
                way.cancel()
            await asyncio.gather(*done, *rest, return_exceptions=True)
        finally:
            self._open -= flows
            for flow in flows:
                flow.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool = False) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await self._flows.wait()
                if self._loses(answers=answers):
                    self.lost += 1
                    return
                writer.write(data)
                await writer.drain()

    def _loses(self, *, answers: bool) -> bool:
        """Whether what has just arrived is to be lost."""
        if answers and self._answers_to_lose:
            self._answers_to_lose -= 1
            return True
        if not answers and self._requests_to_lose:
            self._requests_to_lose -= 1
            return True
        return False

    async def _accept(self, started: threading.Event, stopped: asyncio.Event) -> None:
        async with await asyncio.start_server(self._serve, self._host, 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            started.set()
            await stopped.wait()
            self._cut()


@contextmanager
def proxy(upstream: Path | int, *, host: str = "127.0.0.1") -> Iterator[Proxy]:
    """A running proxy to a Unix socket or a loopback port, in the network namespace of whoever asks for it."""
    made = Proxy(upstream, host)
    started, stopped = threading.Event(), asyncio.Event()

    def run() -> None:
        asyncio.set_event_loop(made._loop)
        made._loop.run_until_complete(made._accept(started, stopped))
        left = asyncio.all_tasks(made._loop)
        for task in left:
            task.cancel()
        made._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        made._loop.close()

    thread = threading.Thread(target=run, name="faults-proxy", daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield made
    finally:
        made._loop.call_soon_threadsafe(stopped.set)
        thread.join(10)
