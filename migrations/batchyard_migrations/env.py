"""How Alembic runs these migrations: over the connection that `batchyard.store.migrate` hands in, or a URL's."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from batchyard.store.migrate import engine
from batchyard.store.tables import metadata


def run(connection: Connection) -> None:
    """Bring the database up to date; the caller's transaction holds everything."""
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            # Two processes that start at once: the second waits here and finds nothing left to do.
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7046029254386353131)")
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    connecting = engine(context.config.get_main_option("sqlalchemy.url") or "")
    with connecting.begin() as opened:
        run(opened)
    connecting.dispose()
