"""The job store on Postgres."""

from batchyard.store.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
