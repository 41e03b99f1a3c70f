"""Connections for the hot statements: psycopg without a layer above, plans that do not depend on statistics."""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.pq import TransactionStatus

from batchyard.store.postgres.arrays import register

CONNECT_SECONDS = 5
IDLE_CONNECTIONS = 8

_SESSION = {
    "application_name": "batchyard",
    # A row lock is held for one short statement, so a longer wait means that something is wrong.
    "lock_timeout": "5s",
    "statement_timeout": "30s",
    "idle_in_transaction_session_timeout": "60s",
    "jit": "off",
    # There is an index for everything; a table that is empty now may be long a minute later, under the same plan.
    "enable_seqscan": "off",
}

SHARED_SESSION = {**_SESSION, "random_page_cost": "1.1"}
"""Parameters of the sessions for shared statements."""

HOT_SESSION = {
    **_SESSION,
    # Every hot statement goes from arrays to primary keys, whatever the statistics say or do not say. With these the
    # planner finds no cheaper way than that, on empty tables too, and one generic plan serves arrays of any length.
    "plan_cache_mode": "force_generic_plan",
    "random_page_cost": "0.01",
    "enable_bitmapscan": "off",
    "enable_mergejoin": "off",
}
"""Parameters of the sessions for hot statements."""

Connection = psycopg.Connection[tuple[Any, ...]]


def connect_arguments(url: sa.URL, session: dict[str, str]) -> dict[str, Any]:
    """What psycopg is to be called with: the URL's own parameters win over ours."""
    named = url.translate_connect_args(username="user", database="dbname")
    extra = {name: value if isinstance(value, str) else ",".join(value) for name, value in url.query.items()}
    arguments = {**named, **extra}
    settings = " ".join(f"-c {name}={value}" for name, value in session.items() if name != "application_name")
    ours = {
        "application_name": session["application_name"],
        "connect_timeout": CONNECT_SECONDS,
        # A peer that vanished without a word is noticed although we only wait for it.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
    }
    return {**ours, **arguments, "options": f"{settings} {arguments.get('options', '')}".strip()}


class HotPool:
    """Connections in autocommit: each statement is a transaction, one round trip. Thread-safe.

    A connection that the server has closed meanwhile is noticed before it is lent, so a restart of the server costs no
    statement beyond those in flight.
    """

    def __init__(self, url: sa.URL) -> None:
        self._arguments = connect_arguments(url, HOT_SESSION)
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend a connection; psycopg's errors pass through. One whose session has ended is not lent again."""
        connection = self._take()
        try:
            yield connection
        finally:
            self._give_back(connection)

    def close(self) -> None:
        """Close what is idle now and, when it comes back, what is lent."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self) -> Connection:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return self._connect()
            if is_quiet(connection):
                return connection
            connection.close()

    def _give_back(self, connection: Connection) -> None:
        reusable = not connection.closed and connection.info.transaction_status == TransactionStatus.IDLE
        with self._lock:
            if reusable and not self._closed and len(self._idle) < IDLE_CONNECTIONS:
                self._idle.append(connection)
                return
        connection.close()

    def _connect(self) -> Connection:
        connection: Connection = psycopg.connect(**self._arguments, autocommit=True, cursor_factory=psycopg.RawCursor)
        register(connection)
        return connection


def is_quiet(connection: psycopg.Connection[Any]) -> bool:
    """Whether the server has sent nothing unasked, which here is mostly its goodbye."""
    if connection.closed:
        return False
    poller = select.poll()
    poller.register(connection.fileno(), select.POLLIN)
    return not poller.poll(0)
