"""Bringing a database's schema to the version that this code speaks, by the migrations that ship with it."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.pool import NullPool

from batchyard.errors import Unavailable

LOCATION = "batchyard_migrations:"

_one_at_a_time = threading.Lock()
"""Alembic keeps what it works on in a module: one migration per process."""


def engine(url: str) -> sa.Engine:
    """An engine for migrations alone: one connection at a time, none kept."""
    made = sa.make_url(url)
    if made.get_backend_name() != "sqlite":
        return sa.create_engine(made, poolclass=NullPool)
    from pysqlite3 import dbapi2

    if made.database:
        Path(made.database).parent.mkdir(parents=True, exist_ok=True)
    connecting = sa.create_engine(made, module=dbapi2, poolclass=NullPool)
    sa.event.listen(connecting, "connect", lambda raw, record: _prepare_sqlite(raw, made.database))
    sa.event.listen(connecting, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return connecting


def _prepare_sqlite(raw: Any, path: str | None) -> None:
    """The driver must not begin by itself: it would leave table definitions outside the transaction."""
    raw.isolation_level = None
    if path and raw.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        with _turn(path):
            raw.execute("PRAGMA journal_mode = WAL")
    raw.execute("PRAGMA synchronous = FULL")


@contextmanager
def _turn(path: str) -> Iterator[None]:
    """This process's turn at a SQLite file, by the lock that the store's writers take.

    Of two connections that switch a file to WAL at once SQLite refuses one as locked, without waiting.
    """
    file = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


@contextmanager
def _connecting(url: str) -> Iterator[sa.Engine]:
    """An engine for one piece of work; Unavailable where the database cannot be reached."""
    connecting = engine(url)
    try:
        yield connecting
    except (sa.exc.OperationalError, sa.exc.InterfaceError) as away:
        reason = " ".join(str(away.orig).split())
        raise Unavailable(f"the database {_shown(url)} cannot be used: {reason}", retry_after_seconds=5.0) from away
    finally:
        connecting.dispose()


def _shown(url: str) -> str:
    return sa.make_url(url).render_as_string(hide_password=True)


def upgrade(url: str) -> None:
    """Bring the database at a SQLAlchemy URL to the newest schema. Does nothing where it is there already."""
    with _connecting(url) as connecting, connecting.begin() as connection:
        upgrade_connection(connection)


def upgrade_connection(connection: sa.Connection) -> None:
    """As `upgrade`, over an open connection; the caller commits. A newer schema is left as it is."""
    if is_newer(MigrationContext.configure(connection).get_current_revision()):
        return
    config = Config()
    config.set_main_option("script_location", LOCATION)
    config.attributes["connection"] = connection
    with _one_at_a_time:
        command.upgrade(config, "head")


def current(url: str) -> str | None:
    """The schema version of a database; None where it has none."""
    with _connecting(url) as connecting, connecting.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


@lru_cache(maxsize=1)
def newest() -> str | None:
    """The schema version that this code speaks."""
    config = Config()
    config.set_main_option("script_location", LOCATION)
    return ScriptDirectory.from_config(config).get_current_head()


def is_newer(found: str | None) -> bool:
    """Whether a schema version comes after the one that this code speaks. They are numbers of four digits."""
    wanted = newest()
    return found is not None and wanted is not None and found > wanted


def fits(found: str | None) -> bool:
    """Whether this code works with a schema: the one that it speaks, or a newer one of the same thousand, which only
    adds to it. So a fleet may be upgraded one process at a time, the schema first."""
    return found == newest() or (is_newer(found) and str(found)[0] == str(newest())[0])


def check(url: str) -> None:
    """Unavailable, saying what to do, where this code cannot work with the database's schema."""
    found, wanted = current(url), newest()
    if fits(found):
        return
    if is_newer(found):
        raise Unavailable(
            f"the database {_shown(url)} has the schema version {found}, which this batchyard is too old for: it knows"
            f" {wanted}; upgrade it",
            retry_after_seconds=5.0,
        )
    have = f"has the schema version {found}" if found else "has no schema"
    raise Unavailable(
        f"the database {_shown(url)} {have} and this batchyard needs {wanted}: run `batchyard migrate`",
        retry_after_seconds=5.0,
    )
