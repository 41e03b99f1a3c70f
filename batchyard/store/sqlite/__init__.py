"""The job store on SQLite."""

from batchyard.store.sqlite.store import SqliteStore

__all__ = ["SqliteStore"]
