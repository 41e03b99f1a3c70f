"""What every Postgres statement stands on: connections, the clock, and what failures become."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.errors import DeadlockDetected, SerializationFailure
from psycopg.types.numeric import Int8
from sqlalchemy import ColumnElement, Connection, Table, event
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DisconnectionError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.types import UserDefinedType

from batchyard.errors import Unavailable
from batchyard.store.deltas import JobRow
from batchyard.store.postgres.arrays import Int8Array, int8s, register
from batchyard.store.postgres.pool import SHARED_SESSION, HotPool, connect_arguments, is_quiet
from batchyard.store.postgres.statement import Statement
from batchyard.store.shared import SharedStore
from batchyard.store.sql import DatabaseAway, job_rows, unavailable
from batchyard.store.tables import jobs

CLOCK_KEPT_SECONDS = 60.0
CLOCK_RETRY_SECONDS = 5.0
CLOCK_TRUSTED_SECONDS = 0.001
CLOCK_READINGS = 3

_AWAY = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)
_SHARED_AWAY = (OperationalError, InterfaceError, InternalError, PoolTimeout)
_CLOCK = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::float8"
_READ_CLOCK = Statement(_CLOCK)
_DURABILITY = Statement("SELECT current_setting('synchronous_commit'), current_setting('fsync')")
_PING = Statement("SELECT 1")


class ConnectionLost(DatabaseAway):
    """The connection ended with a statement under way: it may have been committed or not."""


class Session(SharedStore):
    """Two ways to the database: `_run` for the hot statements, SQLAlchemy's connections for those that are shared."""

    def __init__(self, url: str) -> None:
        super().__init__()
        parsed = sa.make_url(url).set(drivername="postgresql+psycopg")
        self._engine = _engine(parsed)
        # Each shared read is right by statement, so it needs no transaction, which would cost two more round trips.
        self._reader = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._hot = HotPool(parsed)
        self._clock_offset_ms = 0.0
        self._clock_due = 0.0
        self._clock_took = 0.0

    def close(self) -> None:
        """See `JobStore.close`."""
        self._hot.close()
        self._engine.dispose()

    def ping(self) -> None:
        """See `JobStore.ping`."""
        self._run(_PING)

    def durability(self) -> str:
        """See `JobStore.durability`."""
        ((commit, fsync),) = self._run(_DURABILITY)
        return f"postgres synchronous_commit={commit}" + ("" if fsync == "on" else f" fsync={fsync}")

    # --- the database's clock ---

    def now_ms(self) -> int:
        """See `JobStore.now_ms`. A round trip once a minute where no statement has told the time meanwhile."""
        if time.monotonic() >= self._clock_due:
            self._read_clock()
        return int(time.monotonic() * 1000 + self._clock_offset_ms)

    def _read_clock(self) -> None:
        try:
            # The first reading may have had to connect.
            for _ in range(CLOCK_READINGS):
                asked = time.monotonic()
                ((database_ms,),) = self._run(_READ_CLOCK)
                if self._set_clock(database_ms, asked=asked):
                    return
        except Unavailable:
            if not self._clock_due:
                raise
            self._clock_due = time.monotonic() + CLOCK_RETRY_SECONDS

    def _set_clock(self, database_ms: float, *, asked: float) -> bool:
        """The clock was read by a bare statement sent at `asked`; halfway is as good a guess as any.

        False where the reading took so long that it says little, and is taken only for want of a better one.
        """
        heard = time.monotonic()
        is_good = heard - asked < CLOCK_TRUSTED_SECONDS
        if is_good or heard - asked < self._clock_took or heard >= self._clock_due:
            self._clock_offset_ms = database_ms - (asked + heard) * 500
            self._clock_took = heard - asked
            self._clock_due = heard + CLOCK_KEPT_SECONDS
        return is_good

    def _database_ms(self, connection: Connection) -> int:
        asked = time.monotonic()
        database_ms = float(connection.execute(sa.text(_CLOCK)).scalar_one())
        self._set_clock(database_ms, asked=asked)
        return int(database_ms)

    # --- hot statements ---

    def _run(self, statement: Statement, **values: Any) -> list[tuple[Any, ...]]:
        """Run one hot statement in a transaction of its own; one that fell to a deadlock is tried again, once.

        Raises ConnectionLost where it may have been committed, Unavailable where it was not; errors of the data pass.
        """
        arguments = statement.arguments(values)
        try:
            try:
                return self._execute(statement, arguments)
            except (DeadlockDetected, SerializationFailure):
                return self._execute(statement, arguments)
        except _AWAY as away:
            raise unavailable(away, database="postgres") from away

    def _execute(self, statement: Statement, arguments: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self._hot.connection() as connection:
            try:
                cursor = connection.cursor(binary=True)
                if statement.then is None:
                    return cursor.execute(statement.text, arguments, prepare=True).fetchall()
                own = statement.parameters
                with connection.transaction():
                    rows = cursor.execute(statement.text, arguments[:own], prepare=True).fetchall()
                    cursor.execute(statement.then.text, arguments[own:], prepare=True)
                return rows
            except _AWAY as away:
                if connection.closed or _is_goodbye(away.sqlstate):
                    connection.close()
                    raise ConnectionLost(str(unavailable(away, database="postgres")), retry_after_seconds=1.0) from away
                raise

    # --- shared statements ---

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with _translated(), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with _translated(), self._engine.begin() as connection:
            yield connection

    def _insert(self, table: Table) -> postgresql.Insert:
        return postgresql.insert(table)

    def _among(self, column: ColumnElement[int], ids: Sequence[int]) -> ColumnElement[bool]:
        return column == sa.func.any(sa.bindparam(None, ids, type_=_Int8s(), unique=True))

    def _text_member(self, body: ColumnElement[Any], name: str) -> ColumnElement[str]:
        document = sa.cast(sa.func.convert_from(body, "UTF8"), postgresql.JSON)
        return sa.func.json_extract_path_text(document, name, type_=sa.Text)

    def _lock_jobs(self, connection: Connection, statement: sa.Select[Any]) -> list[JobRow]:
        # Nothing is waited for, so the order of locks is nobody's concern, and without one the planner takes the index
        # that fits. Asked for an order by id, it may walk through all jobs by their primary key instead.
        return sorted(job_rows(connection.execute(statement.order_by(None).with_for_update(skip_locked=True, of=jobs))))


def _is_goodbye(sqlstate: str | None) -> bool:
    """Whether a failure ends the session: said by the client alone, a connection exception, or the server's end."""
    return sqlstate is None or sqlstate.startswith(("08", "57P0"))


class _Int8s(UserDefinedType[Sequence[int]]):
    """A column of 64-bit integers as one parameter."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "BIGINT[]"

    def bind_processor(self, dialect: sa.Dialect) -> Any:
        return _as_array


def _as_array(values: Sequence[int]) -> Int8Array:
    return int8s(values)


def int8(value: int) -> Int8:
    """A number that always travels as 64 bits, so that the statement is prepared once."""
    return Int8(value)


def _engine(url: sa.URL) -> sa.Engine:
    engine = sa.create_engine(
        url,
        connect_args=connect_arguments(url, SHARED_SESSION),
        pool_size=8,
        max_overflow=8,
        pool_timeout=10.0,
        hide_parameters=True,  # they hold inputs, and errors are logged
        use_native_hstore=False,
    )

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: object) -> None:
        register(connection)

    @event.listens_for(engine, "checkout")
    def _taken(connection: Any, _: object, __: object) -> None:
        # A connection that the server has closed meanwhile is replaced before anything is sent.
        if not is_quiet(connection):
            raise DisconnectionError

    return engine


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except _SHARED_AWAY as away:
        raise unavailable(away, database="postgres") from away
