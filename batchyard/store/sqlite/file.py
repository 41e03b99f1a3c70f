"""Connections to one SQLite database: the writer of this process, its turn among processes, and the readers."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from pysqlite3 import dbapi2
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from batchyard.errors import Unavailable
from batchyard.logs import log_event
from batchyard.store.sql import unavailable

BUSY_SECONDS = 10.0
WRITER_CACHE_KIB = 64 * 1024
READER_CACHE_KIB = 8 * 1024
CHECKPOINT_PAGES = 1_000
"""Beside a bulk load tiny transactions had a p99 of 71 ms; with 4,000 pages 162 ms, at the same throughput."""
STATEMENTS = 256

SOUND_VERSION = (3, 51, 3)
"""Before it, concurrent connections could corrupt a database when its write-ahead log started over."""

log = logging.getLogger(__name__)

_FAILURES = (dbapi2.OperationalError, dbapi2.InternalError, dbapi2.NotSupportedError, dbapi2.InterfaceError)


class Handle(NamedTuple):
    """One connection twice: the driver's, for hot statements, and SQLAlchemy's on top of it, for all others.

    The driver's is in autocommit mode and transactions are begun and ended by statements; SQLAlchemy never commits.
    """

    raw: Any
    core: sa.Connection


class SqliteFile:
    """A database file, or, with no path, a private database in memory. Thread-safe.

    Writers take turns: a lock among the threads of this process, and among processes a lock on a file beside the
    database, whose waiters wake at once, where SQLite's own busy handler sleeps and polls. Readers see the last commit
    and never wait. A database in memory has one connection, which readers and writers share in turn.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._turn = threading.Lock()
        self._turn_file: int | None = None
        self._closed = False
        self._engine = sa.create_engine(
            "sqlite+pysqlite://",
            module=dbapi2,
            creator=self._connect,
            poolclass=NullPool,
            hide_parameters=True,  # they hold inputs, and errors are logged
            skip_autocommit_rollback=True,
        )
        self._idle_readers: deque[Handle] = deque()
        self._writer: Handle | None = None
        self._is_durable = True
        if dbapi2.sqlite_version_info < SOUND_VERSION:
            log_event(log, "sqlite_version", level=logging.WARNING, found=dbapi2.sqlite_version, sound=SOUND_VERSION)
        if path is not None:
            self._turn_file = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _connect(self) -> Any:
        target = ":memory:" if self.path is None else os.fspath(self.path)
        raw = dbapi2.connect(
            target, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=STATEMENTS
        )
        raw.execute("PRAGMA temp_store = MEMORY")
        if self.path is not None:
            if raw.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                raw.execute("PRAGMA journal_mode = WAL")
            raw.execute("PRAGMA synchronous = FULL")
            raw.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            raw.execute(f"PRAGMA cache_size = -{READER_CACHE_KIB}")
        return raw

    def _open(self) -> Handle:
        core = self._engine.connect()
        raw = core.connection.driver_connection
        return Handle(raw, core)

    def _the_writer(self) -> Handle:
        """Held under `_turn`."""
        if self._closed:
            raise Unavailable("the store is closed", retry_after_seconds=1.0)
        if self._writer is None:
            self._writer = self._open()
            self._writer.raw.execute(f"PRAGMA cache_size = -{WRITER_CACHE_KIB}")
        return self._writer

    @contextmanager
    def writing(self, *, is_durable: bool = True) -> Iterator[Handle]:
        """The writer inside one transaction, committed at the end and rolled back on any error.

        Unless `is_durable`, a commit does not wait for the disk: it survives any end of the process, and where the
        machine goes down it may be undone, never without all commits after it, nor a durable one before it.
        """
        with self._turn, self._errors():
            if self._turn_file is not None:
                fcntl.flock(self._turn_file, fcntl.LOCK_EX)
            try:
                handle = self._the_writer()
                self._sync(handle, is_durable)
                handle.raw.execute("BEGIN IMMEDIATE")
                try:
                    yield handle
                    handle.raw.execute("COMMIT")
                except BaseException:
                    # SQLite has rolled back by itself where the disk was full or failed.
                    if handle.raw.in_transaction:
                        handle.raw.execute("ROLLBACK")
                    raise
            finally:
                if self._turn_file is not None:
                    fcntl.flock(self._turn_file, fcntl.LOCK_UN)

    def _sync(self, handle: Handle, is_durable: bool) -> None:
        """Held under `_turn`. In a write-ahead log, NORMAL leaves the flush at a commit out, and nothing else."""
        if is_durable != self._is_durable:
            handle.raw.execute(f"PRAGMA synchronous = {'FULL' if is_durable else 'NORMAL'}")
            self._is_durable = is_durable

    @contextmanager
    def reading(self, *, snapshot: bool = True) -> Iterator[Handle]:
        """A reader; with `snapshot` all its statements see one state of the database."""
        if self.path is None:
            with self._turn, self._errors():
                yield self._the_writer()
            return
        with self._errors():
            handle = self._take_reader()
            try:
                if snapshot:
                    handle.raw.execute("BEGIN")
                yield handle
            except BaseException:
                self._discard(handle)
                raise
            if snapshot:
                handle.raw.execute("COMMIT")
            self._give_back(handle)

    def _take_reader(self) -> Handle:
        if self._closed:
            raise Unavailable("the store is closed", retry_after_seconds=1.0)
        try:
            return self._idle_readers.pop()
        except IndexError:
            return self._open()

    def _give_back(self, handle: Handle) -> None:
        self._idle_readers.append(handle)
        if self._closed:
            self._close_readers()

    def _discard(self, handle: Handle) -> None:
        with suppress(dbapi2.Error, DBAPIError):
            handle.core.close()

    def _close_readers(self) -> None:
        with suppress(IndexError):
            while True:
                self._discard(self._idle_readers.pop())

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What the database's failures become; faults of a statement stay what they are."""
        try:
            yield
        except DBAPIError as error:
            if isinstance(error.orig, _FAILURES) or type(error.orig) is dbapi2.DatabaseError:
                raise self._unavailable(error) from error
            raise
        except dbapi2.Error as error:
            if isinstance(error, _FAILURES) or type(error) is dbapi2.DatabaseError:
                raise self._unavailable(error) from error
            raise
        except OSError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: BaseException) -> Unavailable:
        return unavailable(error, database="sqlite in memory" if self.path is None else str(self.path))

    def close(self) -> None:
        """Close every connection, once the writer's transaction in progress has ended. Closing again does nothing."""
        with self._turn:
            if self._closed:
                return
            self._closed = True
            self._close_readers()
            if self._writer is not None:
                self._discard(self._writer)
                self._writer = None
            self._engine.dispose()
            if self._turn_file is not None:
                os.close(self._turn_file)
                self._turn_file = None
