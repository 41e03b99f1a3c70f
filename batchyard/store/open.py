"""From a database URL to a job store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from batchyard.errors import ConfigurationError, MissingExtra

if TYPE_CHECKING:
    from batchyard.store.base import JobStore

SQLITE_FILE = "batchyard.db"


def database_url(url: str, *, state_dir: Path) -> str:
    """The SQLAlchemy URL of a configured one: `sqlite` alone means a file in the state folder."""
    return f"sqlite:///{(state_dir / SQLITE_FILE).resolve()}" if url == "sqlite" else url


def open_store(url: str, *, state_dir: Path) -> JobStore:
    """Open the store behind `sqlite`, `sqlite:///PATH` or `postgresql+psycopg://…`.

    MissingExtra where the machinery is not installed, Unavailable where the database is away or its schema is not the
    one that this code speaks, ConfigurationError for a URL of another kind.
    """
    full = database_url(url, state_dir=state_dir)
    try:
        return _open(full)
    except ImportError as missing:
        raise MissingExtra(feature=f"the database {full.partition(':')[0]}", extra="producer") from missing


def _open(url: str) -> JobStore:
    from batchyard.store import migrate

    if url.startswith("sqlite:///"):
        from batchyard.store.sqlite import SqliteStore

        migrate.check(url)
        return SqliteStore(Path(url.removeprefix("sqlite:///")))
    if url.startswith("postgresql"):
        from batchyard.store.postgres import PostgresStore

        migrate.check(url)
        return PostgresStore(url)
    raise ConfigurationError(["database.url must be sqlite, sqlite:///PATH or postgresql+psycopg://…"])
