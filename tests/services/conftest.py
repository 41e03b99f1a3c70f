"""A migrated Postgres database shared by the run: a fresh one for each test would cost minutes."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from batchyard.store import migrate
from batchyard.store.tables import metadata
from tests.servers import PostgresServer


@pytest.fixture(scope="session")
def migrated_postgres(postgres_cluster: PostgresServer) -> Iterator[str]:
    """One migrated database for all tests, emptied between them by `empty_postgres`."""
    url = postgres_cluster.create_database()
    migrate.upgrade(url)
    yield url
    postgres_cluster.drop_database(url)


@pytest.fixture
def empty_postgres(migrated_postgres: str) -> str:
    """The URL of a migrated database that holds the default tenant and nothing else."""
    engine = sa.create_engine(migrated_postgres)
    names = ", ".join(f'"{table.name}"' for table in metadata.sorted_tables)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"TRUNCATE {names} RESTART IDENTITY")
        connection.exec_driver_sql("INSERT INTO tenants (name, created_at) VALUES ('default', 0)")
    engine.dispose()
    return migrated_postgres
