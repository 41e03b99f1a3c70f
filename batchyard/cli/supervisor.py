"""What `up` does: a lock, the private Valkey, the schema, then the API and the scaler as children, until told to."""

from __future__ import annotations

import fcntl
import http.client
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import IO, Any

import msgspec

from batchyard.broker.embedded import EmbeddedValkey
from batchyard.cli.invocation import Invocation
from batchyard.cli.migrate import migrate_database
from batchyard.configuration import redacted
from batchyard.errors import BatchyardError, Conflict, ServerError
from batchyard.processes import Backoff, Child, end_all
from batchyard.settings import PoolSettings, Settings

READY_SECONDS = 60.0
LOOK_SECONDS = 0.2
MOST_DEATHS = 5
"""In a row, each soon after its start: then there is no point in going on."""
END_MARGIN_SECONDS = 3.0
"""Beyond the pools' drain_seconds, before what has not ended is killed. More than the scaler gives its consumers."""
HURRY_SECONDS = 2.0
"""After a second Ctrl-C. More than the scaler gives its consumers then."""

SHOWN_EVENTS = {
    "pool_scaled",
    "consumer_died",
    "consumer_killed",
    "consumer_preempted",
    "database_away",
    "deciding_failed",
    "batch_failed",
    "model_load_failed",
}


class Supervisor:
    """One run of `up`. `run` belongs to the main thread; `stop` may be called from a signal handler."""

    def __init__(
        self,
        invocation: Invocation,
        settings: Settings,
        *,
        say: Callable[[str], None],
        verbose: bool,
        scaler_arguments: Sequence[str] = (),
    ) -> None:
        self._invocation = invocation
        self._settings = settings
        self._say = say
        self._verbose = verbose
        self._stop = threading.Event()
        self._hurry = threading.Event()
        host, port = _address(settings)
        self.url = f"http://{_reachable(host)}:{port}"
        self._bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        logs = settings.state_dir / "logs"
        self._api = Child(
            "the API",
            invocation.child_command("api", "--bind", self._bind),
            log=logs / "api.log",
            on_line=self._show,
            backoff=Backoff(first_seconds=0.5, longest_seconds=10.0),
        )
        self._scaler = Child(
            "the scaler",
            invocation.child_command("scaler", "--local", *scaler_arguments),
            log=logs / "scaler.log",
            on_line=self._show,
            backoff=Backoff(first_seconds=0.5, longest_seconds=10.0),
        )
        self._drain_seconds = max((pool.drain_seconds for pool in settings.pools), default=0.0)

    def stop(self) -> None:
        """Drain and end; called again: end at once."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def run(self) -> int:
        """Start everything, look after it, end it; returns the exit status. Raises what keeps it from starting."""
        with ExitStack() as stack:
            stack.enter_context(closing(_lock(self._settings.state_dir)))
            valkey = self._start_broker(stack)
            migrate_database(self._settings)
            stack.callback(self._end)
            self._api.start()
            self._await_api()
            if self._stop.is_set():
                return 0
            self._scaler.start()
            self._announce()
            return self._look_after(valkey)

    def _start_broker(self, stack: ExitStack) -> EmbeddedValkey | None:
        if self._settings.broker.url != "embedded":
            return None
        return stack.enter_context(EmbeddedValkey(self._settings.state_dir))

    def _await_api(self) -> None:
        end = time.monotonic() + READY_SECONDS
        while not self._stop.is_set() and not self._is_ready():
            if not self._api.is_running:
                raise ServerError(f"the API {self._api.how_it_ended()}; its log ends with:\n{_told(self._api)}")
            if time.monotonic() > end:
                raise ServerError(f"the API was not ready after {READY_SECONDS:g} s; its log is {self._api.log}")
            self._stop.wait(0.05)

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection(self.url.partition("://")[2], timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _announce(self) -> None:
        settings = self._settings
        self._say(f"batchyard is up at {self.url} (documentation at {self.url}/docs)")
        self._say(f"  state     {settings.state_dir} (logs in {settings.state_dir / 'logs'})")
        self._say(f"  database  {redacted(settings.database.url)}   broker {redacted(settings.broker.url)}")
        for pool in settings.pools:
            self._say(f"  pool      {describe(pool)}")
        self._say("Ctrl-C drains and ends; what is queued then waits for the next `batchyard up`.")

    def _look_after(self, valkey: EmbeddedValkey | None) -> int:
        while not self._stop.wait(LOOK_SECONDS):
            for child in (self._api, self._scaler):
                if (news := child.look_after()) is not None:
                    self._say(news)
                if child.deaths >= MOST_DEATHS:
                    self._say(f"{child.name} dies again and again; its log ends with:\n{_told(child)}")
                    return 1
            if valkey is not None and not valkey.is_running:
                self._say("the private Valkey has ended; starting it again (nothing is lost with it)")
                try:
                    valkey.start()
                except BatchyardError as error:
                    self._say(f"{error.message}; jobs are claimed from the database meanwhile")
                    self._stop.wait(2.0)
        return 0

    def _end(self) -> None:
        """All at once: consumers write to the database, so nobody needs the API. The Valkey goes last, with the stack:
        what consumers hand back is ticketed there."""
        if self._scaler.is_running:
            self._say(
                "draining: running batches finish, queued jobs stay for the next time (Ctrl-C again ends at once)"
            )
        killed = end_all(
            [self._scaler, self._api],
            grace_seconds=self._drain_seconds + END_MARGIN_SECONDS,
            hurry=self._hurry,
            hurry_seconds=HURRY_SECONDS,
        )
        self._say(f"ended; {' and '.join(killed)} had to be killed" if killed else "ended")

    def _show(self, line: bytes) -> None:
        """A line of a child's log: all of them with --verbose, else what people should know."""
        if self._verbose:
            self._say(line.decode(errors="replace").rstrip())
        elif (told := headline(line)) is not None:
            self._say(told)


def headline(line: bytes) -> str | None:
    """What to tell of a log line; None for most."""
    try:
        record: Any = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if not isinstance(record, dict):
        return None
    event = record.get("event")
    if event == "pool_scaled":
        change = f"{record.get('before')} → {record.get('replicas')} consumers"
        return f"pool {record.get('pool')}: {change} ({record.get('reason')})"
    if event == "consumer_died":
        return f"pool {record.get('pool')}: {record.get('news')}\n{record.get('tail')}"
    if event in SHOWN_EVENTS or record.get("level") in {"error", "critical"}:
        fields = {k: v for k, v in record.items() if k not in {"time", "level", "event", "logger", "traceback"}}
        return " ".join([f"{record.get('level')}: {event}", *(f"{name}={value}" for name, value in fields.items())])
    return None


def describe(pool: PoolSettings) -> str:
    """A pool in one line."""
    kind = "" if pool.capacity == "on_demand" else f", {pool.capacity}"
    return f"{pool.name}: {', '.join(pool.models)} on {pool.min} to {pool.max} consumers (device {pool.device}{kind})"


def _told(child: Child) -> str:
    """The end of a child's log, as short as it can be told: its last error message, or its last lines."""
    lines = child.tail(40).splitlines()
    errors = [line for line in lines if line.startswith("Error: ")]
    return "\n".join(lines[lines.index(errors[-1]) :]) if errors else "\n".join(lines[-15:])


def _lock(state_dir: Path) -> IO[str]:
    """Held as long as the process lives; Conflict where another `up` runs in this state folder."""
    state_dir.mkdir(parents=True, exist_ok=True)
    lock = (state_dir / "up.lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        holder = lock.read().strip()
        lock.close()
        who = f" (process {holder})" if holder else ""
        raise Conflict(f"another `batchyard up`{who} runs in {state_dir}: end it, or name another --state") from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _address(settings: Settings) -> tuple[str, int]:
    """Host and port of the API; Conflict where somebody else listens there."""
    host, port = settings.server.host, settings.server.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Conflict(
                f"cannot listen on {settings.server.bind}: {error.strerror}; choose another server.bind, or --bind"
            ) from error
        return host, probe.getsockname()[1]


def _reachable(host: str) -> str:
    """How this machine reaches what listens on `host`."""
    if host in {"0.0.0.0", "::"}:
        return "127.0.0.1" if host == "0.0.0.0" else "[::1]"
    return f"[{host}]" if ":" in host else host
