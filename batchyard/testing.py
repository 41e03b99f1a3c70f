"""Fakes that stand in for the real parts in tests; they pass the same conformance tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from batchyard.errors import MissingExtra

if TYPE_CHECKING:
    from batchyard.store.base import JobStore


def memory_store(*, clock: Callable[[], int] | None = None) -> JobStore:
    """A job store of its own in memory, with its schema: the SQLite store over a database that nobody else sees.

    `clock` takes the place of the database's clock, in Unix milliseconds. MissingExtra where SQLAlchemy is not there.
    """
    try:
        from batchyard.store import migrate
        from batchyard.store.sqlite import SqliteStore
        from batchyard.store.sqlite.store import wall_clock_ms
    except ModuleNotFoundError as missing:
        raise MissingExtra(feature="memory_store", extra="producer") from missing

    store = SqliteStore(None, clock=clock or wall_clock_ms)
    store.prepare(migrate.upgrade_connection)
    return store
