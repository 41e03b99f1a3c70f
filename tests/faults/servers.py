"""The broker and the database of a run, each with what may be done to it. Processes reach both through a proxy."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import kombu
import psutil
import redis
import sqlalchemy as sa

from tests.faults.proxy import Proxy, proxy
from tests.faults.triggers import engine
from tests.servers import Server, postgres_server, rabbitmq_server, valkey_server

START_SECONDS = 60.0


class Revivable:
    """A server's process, which may be killed and is then started again as it was."""

    def __init__(
        self, server: Server, *, answers: Callable[[], bool], ends_with: signal.Signals = signal.SIGKILL
    ) -> None:
        first = psutil.Process(server.pid)
        self._command, self._folder, self._variables = first.cmdline(), first.cwd(), first.environ()
        self._user = first.username() if os.geteuid() == 0 else None
        self._process: psutil.Process = first
        self._answers = answers
        self._ends_with = ends_with

    def end(self) -> None:
        """End it at once, in the middle of whatever it does, and wait until it has ended."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, self._ends_with)
        with suppress(psutil.NoSuchProcess):
            self._process.wait(30)

    def pause(self) -> None:
        """With all that it has started: each backend of PostgreSQL is a group of its own."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        # The parent first when they are stopped: it starts no more meanwhile.
        for process in (self._process, *self._process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def start(self) -> None:
        """Start it again and wait until it answers."""
        with (Path(self._folder) / "server.log").open("ab") as log:
            self._process = psutil.Popen(
                self._command,
                cwd=self._folder,
                env=self._variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=self._user,
                extra_groups=None if self._user is None else [],
            )
        give_up = time.monotonic() + START_SECONDS
        while not self._answers():
            assert time.monotonic() < give_up, f"{self._command[0]} did not start again"
            time.sleep(0.05)


class Broker(Protocol):
    """A broker of either kind. `url` goes through `proxy`, `direct` does not."""

    url: str
    direct: str
    process: Revivable
    proxy: Proxy

    def empty(self, names: Sequence[str]) -> None:
        """Drop all tickets."""

    def push(self, name: str, body: bytes) -> None:
        """Append a message that says what it likes."""


class Valkey:
    """Without persistence: killed, it forgets everything."""

    def __init__(self, server: Server, between: Proxy) -> None:
        self.direct = server.url
        self.url = f"redis://127.0.0.1:{between.port}"
        self.proxy = between
        self._client = redis.Redis(unix_socket_path=str(server.directory / "s"))
        self.process = Revivable(server, answers=self._answers)

    def empty(self, names: Sequence[str]) -> None:
        self._client.flushall()

    def push(self, name: str, body: bytes) -> None:
        self._client.lpush(name, body)

    def refuse_writes(self, *, refuse: bool) -> None:
        """Have no memory left, or enough."""
        self._client.config_set("maxmemory-policy", "noeviction")
        self._client.config_set("maxmemory", 1 if refuse else 0)

    def _answers(self) -> bool:
        try:
            return bool(self._client.ping())
        except redis.RedisError:
            return False


class RabbitMq:
    """With quorum queues: killed, it keeps what is in them."""

    def __init__(self, server: Server, between: Proxy) -> None:
        self.direct = server.url
        self.url = f"amqp://guest:guest@127.0.0.1:{between.port}//"
        self.proxy = between
        self.process = Revivable(server, answers=self._answers)

    def empty(self, names: Sequence[str]) -> None:
        for name in names:
            # The server closes the channel where there is no such queue.
            with suppress(*self._errors()), self._channel() as channel:
                channel.queue_purge(name)

    def push(self, name: str, body: bytes) -> None:
        with self._channel() as channel:
            channel.basic_publish(channel.prepare_message(body, content_type="application/x-python"), routing_key=name)

    @contextmanager
    def _channel(self) -> Iterator[Any]:
        with kombu.Connection(self.direct, connect_timeout=5) as connection:
            yield connection.channel()

    def _errors(self) -> tuple[type[BaseException], ...]:
        transport = kombu.Connection(self.direct).get_transport_cls()
        return (*transport.connection_errors, *transport.channel_errors, OSError)

    def _answers(self) -> bool:
        try:
            with self._channel():
                return True
        except self._errors():
            return False


class Database(Protocol):
    """A database of either kind. `url` is what processes are told, `direct` the way past the proxy."""

    url: str
    direct: str

    def writers_locked_out(self) -> AbstractContextManager[None]:
        """Nobody else can write while the block lasts."""


class Sqlite:
    def __init__(self, folder: Path) -> None:
        self.url = self.direct = f"sqlite:///{folder / 'batchyard.db'}"
        self._engine = engine(self.direct)

    @contextmanager
    def writers_locked_out(self) -> Iterator[None]:
        with self._engine.connect() as connection:
            raw: Any = connection.connection.driver_connection
            raw.isolation_level = None
            raw.execute("PRAGMA busy_timeout = 30000")
            raw.execute("BEGIN IMMEDIATE")
            try:
                yield
            finally:
                raw.execute("ROLLBACK")


class Postgres:
    def __init__(self, server: Server, between: Proxy) -> None:
        self.direct = server.url
        self.url = f"postgresql+psycopg://postgres@127.0.0.1:{between.port}/postgres"
        self.proxy = between
        self._engine = engine(self.direct)
        # A server that is killed leaves its sessions behind, who keep the next one from starting; this ends them too.
        self.process = Revivable(server, answers=self._answers, ends_with=signal.SIGQUIT)

    @contextmanager
    def writers_locked_out(self) -> Iterator[None]:
        with self._engine.begin() as connection:
            connection.execute(sa.text("LOCK TABLE jobs IN EXCLUSIVE MODE"))
            yield

    def end_sessions(self) -> None:
        """Terminate every other backend."""
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        with self._engine.connect() as connection:
            connection.execute(sa.text(f"{query} AND backend_type = 'client backend'"))

    def _answers(self) -> bool:
        try:
            with self._engine.connect():
                return True
        except sa.exc.OperationalError:
            return False


@contextmanager
def valkey() -> Iterator[Valkey]:
    # It keeps its command line, with which it is started again.
    with valkey_server("--set-proc-title", "no") as server, proxy(server.directory / "s") as between:
        broker = Valkey(server, between)
        with _ended(broker.process):
            yield broker


@contextmanager
def rabbitmq() -> Iterator[RabbitMq]:
    with rabbitmq_server() as server:
        port = int(server.url.rpartition(":")[2].strip("/"))
        with proxy(port) as between:
            broker = RabbitMq(server, between)
            with _ended(broker.process):
                yield broker


@contextmanager
def sqlite(folder: Path) -> Iterator[Sqlite]:
    yield Sqlite(folder)


@contextmanager
def postgres(_folder: Path) -> Iterator[Postgres]:
    with postgres_server() as server, proxy(server.directory / ".s.PGSQL.5432") as between:
        database = Postgres(server, between)
        with _ended(database.process):
            yield database


@contextmanager
def _ended(process: Revivable) -> Iterator[None]:
    """Whoever was started again is ended here, for the server's own block knows only the first."""
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            process.go_on()
        process.end()
