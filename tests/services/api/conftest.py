"""An API served over each kind of database; the ledgers are compared with a count when the test is over."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from batchyard.store import migrate
from batchyard.store.open import open_store
from tests.services.api.yard import Yard, serving
from tests.services.store.yard import check_ledgers


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("empty_postgres"))
    url = f"sqlite:///{tmp_path / 'batchyard.db'}"
    migrate.upgrade(url)
    return url


@pytest.fixture
def yard(database_url: str, tmp_path: Path) -> Iterator[Yard]:
    store = open_store(database_url, state_dir=tmp_path)
    with serving(store, url=database_url, state_dir=tmp_path) as served:
        yield served
    check_ledgers(store)
    store.close()
