"""A stand-in for the metadata services of AWS, Google Cloud and Azure: their documented paths, headers and answers."""

from __future__ import annotations

import datetime as dt
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

AHEAD = dt.timedelta(hours=7)
"""Of the services' clock, before this machine's: nobody may compare the two."""
HELD_SECONDS = 20.0


class MetadataService:
    """What the services say, changed by the test; `url` is where they say it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.action: dict[str, str] | None = None
        """AWS: of the instance; None: 404, as documented."""
        self.rebalance: dict[str, str] | None = None
        self.preempted = "FALSE"
        """Google."""
        self.etag = 1
        self.events: list[dict[str, object]] = []
        """Azure."""
        self.status = 200
        """Of every answer, where it is not 200."""
        self.garbage: bytes | None = None
        """In place of every answer."""
        self.delay = threading.Event()
        """Answers wait for it, where it is not set."""
        self.delay.set()
        self.tokens: set[str] = set()
        self.paths: list[str] = []
        self.url = ""

    def now(self) -> dt.datetime:
        return dt.datetime.now(dt.UTC) + AHEAD

    # --- what clouds do to machines ---

    def interrupt(self, *, in_seconds: float, action: str = "terminate") -> None:
        """AWS, two minutes before."""
        self.action = {"action": action, "time": self._rfc3339(in_seconds)}

    def recommend_rebalance(self) -> None:
        self.rebalance = {"noticeTime": self._rfc3339(0)}

    def preempt(self) -> None:
        """Google, 30 seconds before."""
        with self.changed:
            self.preempted, self.etag = "TRUE", self.etag + 1
            self.changed.notify_all()

    def evict(self, *, in_seconds: float | None, machine: str = "vm-7", kind: str = "Preempt") -> None:
        """Azure, at least 30 seconds before; None: it has begun."""
        at = "" if in_seconds is None else format_datetime(self.now() + dt.timedelta(seconds=in_seconds), usegmt=True)
        event: dict[str, object] = {
            "EventId": "602d9444-d2cd-49c7-8624-8643e7171297",
            "EventStatus": "Started" if in_seconds is None else "Scheduled",
            "EventType": kind,
            "ResourceType": "VirtualMachine",
            "Resources": ["vm-6", machine],
            "NotBefore": at,
            "Description": "",
            "EventSource": "Platform",
            "DurationInSeconds": -1,
        }
        self.events.append(event)

    def _rfc3339(self, in_seconds: float) -> str:
        return f"{self.now() + dt.timedelta(seconds=in_seconds):%Y-%m-%dT%H:%M:%SZ}"

    # --- answers: status and body ---

    def answer(self, method: str, path: str, query: dict[str, str], headers: dict[str, str]) -> tuple[int, bytes]:
        if self.status != 200:
            return self.status, b""
        if self.garbage is not None:
            return 200, self.garbage
        if path.startswith("/latest/"):
            return self._aws(method, path, headers)
        if path.startswith("/computeMetadata/"):
            return self._google(path, query, headers)
        return self._azure(path, query, headers)

    def _aws(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        if path == "/latest/api/token":
            if method != "PUT" or not 1 <= int(headers.get("x-aws-ec2-metadata-token-ttl-seconds", "0")) <= 21_600:
                return 400, b""
            token = f"token-{len(self.paths)}"
            self.tokens.add(token)
            return 200, token.encode()
        if headers.get("x-aws-ec2-metadata-token") not in self.tokens:
            return 401, b""
        told = {
            "/latest/meta-data/spot/instance-action": self.action,
            "/latest/meta-data/events/recommendations/rebalance": self.rebalance,
        }
        if path == "/latest/meta-data/placement/availability-zone":
            return 200, b"us-east-1c"
        found = told.get(path)
        return (404, b"") if found is None else (200, json.dumps(found).encode())

    def _google(self, path: str, query: dict[str, str], headers: dict[str, str]) -> tuple[int, bytes]:
        if headers.get("metadata-flavor") != "Google":
            return 403, b""
        if path == "/computeMetadata/v1/instance/zone":
            return 200, b"projects/414/zones/europe-west4-b"
        if path != "/computeMetadata/v1/instance/preempted":
            return 404, b""
        if query.get("wait_for_change") == "true":
            with self.changed:
                held = min(HELD_SECONDS, float(query["timeout_sec"]))
                self.changed.wait_for(lambda: str(self.etag) != query["last_etag"], timeout=held)
        return 200, self.preempted.encode()

    def _azure(self, path: str, query: dict[str, str], headers: dict[str, str]) -> tuple[int, bytes]:
        if headers.get("metadata") != "true" or "api-version" not in query:
            return 400, b""
        if path == "/metadata/scheduledevents":
            return 200, json.dumps({"DocumentIncarnation": 1, "Events": self.events}).encode()
        if path == "/metadata/instance/compute":
            compute = {"name": "vm-7", "location": "westeurope", "zone": "2", "vmSize": "Standard_NC4as_T4_v3"}
            return 200, json.dumps(compute).encode()
        return 404, b""


@contextmanager
def metadata_service() -> Iterator[MetadataService]:
    service = MetadataService()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            service.paths.append(self.path)
            service.delay.wait(HELD_SECONDS)
            parts = urlsplit(self.path)
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, body = service.answer(self.command, parts.path, query, headers)
            try:
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.send_header("etag", str(service.etag))
                self.end_headers()
                self.wfile.write(body)
            except OSError:  # the asker has given up
                self.close_connection = True

        do_PUT = do_GET  # noqa: N815

        def date_time_string(self, timestamp: float | None = None) -> str:
            return format_datetime(service.now(), usegmt=True)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    service.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.delay.set()
        with service.changed:
            service.etag += 1
            service.changed.notify_all()
        server.shutdown()
        server.server_close()
        thread.join(10)
