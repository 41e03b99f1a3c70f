"""A receiver of webhooks on loopback that answers as it is told and keeps what it was sent."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Heard:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Each message is answered with the next status, and with 204 once these are used up."""

    statuses: list[int] = field(default_factory=list)
    answer_headers: dict[str, str] = field(default_factory=dict)
    url: str = ""
    released: Event = field(default_factory=Event)
    """Until it is set no answer is given."""
    heard: queue.Queue[Heard] = field(default_factory=queue.Queue)

    def next(self) -> Heard:
        """Wait for the next message."""
        return self.heard.get(timeout=WAIT_SECONDS)

    def messages(self, count: int) -> list[Heard]:
        return [self.next() for _ in range(count)]


@contextmanager
def receiving(statuses: Sequence[int] = (), **answer_headers: str) -> Iterator[Receiver]:
    """Listen on a free port; `receiver.url` ends without a slash."""
    receiver = Receiver(list(statuses), {name.replace("_", "-"): value for name, value in answer_headers.items()})
    receiver.released.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.heard.put(Heard(self.path, dict(self.headers.items()), body))
            receiver.released.wait(WAIT_SECONDS)
            self.send_response(receiver.statuses.pop(0) if receiver.statuses else 204)
            for name, value in receiver.answer_headers.items():
                self.send_header(name, value)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's own
            """Nothing is logged."""

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:
                """The sender is gone."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield receiver
    finally:
        receiver.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
