"""The seams between the SQL that both dialects share and what each does its own way."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import starmap
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, Table, and_, literal_column, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from batchyard.errors import NotFound, Unavailable
from batchyard.jobs import IdSource
from batchyard.store.deltas import Deltas, JobRow
from batchyard.store.tables import Ledger, bulks, counters, jobs

JOB_ROW = (
    jobs.c.id,
    jobs.c.tenant_id,
    jobs.c.queue_id,
    jobs.c.state,
    jobs.c.priority,
    jobs.c.cost_estimate,
    jobs.c.deadline,
    jobs.c.bulk_id,
    jobs.c.cancel_requested,
)
"""The columns of a `JobRow`, in its order."""

PREEMPTED = {"preemptions": jobs.c.preemptions + 1}
"""What changes in a job that its consumer lost with its machine."""

IS_QUEUED = jobs.c.state == literal_column("0")
IS_RUNNING = jobs.c.state == literal_column("1")
IS_WAITING = jobs.c.state == literal_column("2")
IS_PREEMPTED = and_(jobs.c.preemptions > literal_column("0"), or_(IS_QUEUED, IS_WAITING))
"""As in the partial indexes: with a bound parameter in place of the number no planner would use them."""

IN_SWEEP = bulks.c.sweep > literal_column("0")
"""As above, of the index on bulks with something to hold or to move."""

Insert = sqlite.Insert | postgresql.Insert


class SqlStore(ABC):
    """A store in a SQL database: what the shared statements ask of a dialect, and the helpers that they stand on.

    Shared statements run on a SQLAlchemy connection from `_reading` or `_writing`; hot ones are the dialect's own.
    """

    def __init__(self) -> None:
        self._source: IdSource | None = None
        self._source_lock = threading.Lock()

    # --- what a dialect gives ---

    @abstractmethod
    def now_ms(self) -> int: ...

    @abstractmethod
    def _reading(self) -> AbstractContextManager[Connection]:
        """A connection for one consistent read; database errors leave it as Unavailable."""

    @abstractmethod
    def _writing(self) -> AbstractContextManager[Connection]:
        """A connection inside one write transaction: committed at the end, rolled back on any error. As `_reading`,
        but an IntegrityError leaves it as it is. Not to be nested."""

    @abstractmethod
    def _database_ms(self, connection: Connection) -> int:
        """The database's clock, read now."""

    @abstractmethod
    def _record(self, connection: Connection, deltas: Deltas) -> None:
        """Write what a transaction changed in the ledgers, and its flushes. The last thing before the commit."""

    @abstractmethod
    def _insert(self, table: Table) -> Insert:
        """The dialect's INSERT, which knows ON CONFLICT."""

    @abstractmethod
    def _among(self, column: ColumnElement[int], ids: Sequence[int]) -> ColumnElement[bool]:
        """`column` is one of `ids`, bound as one parameter whatever their number."""

    @abstractmethod
    def _text_member(self, body: ColumnElement[Any], name: str) -> ColumnElement[str]:
        """A member of the JSON object that `body` is."""

    @abstractmethod
    def _sums(self, ledger: Ledger) -> Select[Any]:
        """The keys and sums of a ledger, unfolded deltas included, empty rows perhaps among them."""

    # --- shared helpers ---

    def take_node(self) -> int:
        """See `JobStore.take_node`."""
        insert = self._insert(counters).values(name="nodes", value=1)
        taken = insert.on_conflict_do_update(index_elements=["name"], set_={"value": counters.c.value + 1})
        with self._writing() as connection:
            return int(connection.execute(taken.returning(counters.c.value)).scalar_one())

    def _take_ids(self, count: int, *, now_ms: int) -> range:
        """Fresh ids from the source of this store. Not inside `_writing` before `_prepare_ids` has been called once."""
        self._prepare_ids()
        with self._source_lock:
            assert self._source is not None
            return self._source.take(count, now_ms=now_ms)

    def _prepare_ids(self) -> None:
        """Fetch this store's node before the first id is wanted: a transaction of its own."""
        if self._source is None:
            node = self.take_node()
            with self._source_lock:
                if self._source is None:
                    self._source = IdSource(node)

    def _finds(self, *statements: Select[Any]) -> bool:
        """Whether any of the statements has a row: asked first, so that idle chores never take the write lock."""
        with self._reading() as connection:
            return any(connection.execute(statement.limit(1)).first() is not None for statement in statements)

    def _lock_jobs(self, connection: Connection, statement: Select[Any]) -> list[JobRow]:
        """Rows of JOB_ROW locked in ascending id order, those that somebody else holds left out."""
        locked = statement.order_by(None).order_by(jobs.c.id).with_for_update(skip_locked=True, of=jobs)
        return job_rows(connection.execute(locked))

    def _lock_all_jobs(self, connection: Connection, statement: Select[Any]) -> list[JobRow]:
        """As `_lock_jobs`, waiting for those that somebody else holds."""
        return job_rows(connection.execute(statement.order_by(jobs.c.id).with_for_update(of=jobs)))

    def _lock_job(self, connection: Connection, job_id: int, *, tenant_id: int) -> JobRow:
        """One job, waited for and locked. NotFound."""
        statement = select(*JOB_ROW).where(jobs.c.id == job_id, jobs.c.tenant_id == tenant_id)
        for row in job_rows(connection.execute(statement.with_for_update())):
            return row
        raise unknown_job()

    def _held_bulks(self, connection: Connection, rows: Iterable[JobRow]) -> set[int]:
        """Those of the rows' bulks that are paused: their jobs come back to the queue as held ones."""
        wanted = sorted({row.bulk_id for row in rows if row.bulk_id is not None})
        if not wanted:
            return set()
        paused = select(bulks.c.id).where(IN_SWEEP, bulks.c.paused, self._among(bulks.c.id, wanted))
        return set(connection.execute(paused).scalars())


def job_rows(rows: Iterable[Row[Any]]) -> list[JobRow]:
    """Rows of JOB_ROW as records."""
    return list(starmap(JobRow, rows))


def unknown_job() -> NotFound:
    return NotFound("no such job")


class DatabaseAway(Unavailable):
    """The message says which database and why, for logs and operators."""

    @property
    def public(self) -> str:
        return "the database cannot be used now: try again"


def unavailable(cause: BaseException, *, database: str) -> Unavailable:
    """What a database's failure becomes."""
    reason = str(getattr(cause, "orig", None) or cause).strip().splitlines() or [type(cause).__name__]
    return DatabaseAway(f"the database ({database}) cannot be used now: {reason[0]}", retry_after_seconds=1.0)
