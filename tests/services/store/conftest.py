"""A store of every kind, empty, for each test; its ledgers are compared with a count when the test is over."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from batchyard.store import migrate
from batchyard.store.base import JobStore
from batchyard.store.open import open_store
from batchyard.testing import memory_store
from tests.services.store.yard import Yard, check_ledgers

KINDS = ("memory", "sqlite", "postgres")


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """The URL of an empty database with the schema; None for one in memory."""
    if request.param == "memory":
        return None
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'batchyard.db'}"
        migrate.upgrade(url)
        return url
    return str(request.getfixturevalue("empty_postgres"))


@pytest.fixture
def open_another(database: str | None, tmp_path: Path) -> Iterator[Callable[[], JobStore]]:
    """Opens further stores over the same database, as other processes would."""
    assert database is not None, "a database in memory has one store: mark the test with several_stores"
    opened: list[JobStore] = []

    def open_one() -> JobStore:
        opened.append(open_store(database, state_dir=tmp_path))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(database: str | None, tmp_path: Path) -> Iterator[JobStore]:
    opened = memory_store() if database is None else open_store(database, state_dir=tmp_path)
    yield opened
    check_ledgers(opened)
    opened.close()


@pytest.fixture
def yard(store: JobStore) -> Yard:
    return Yard(store)
