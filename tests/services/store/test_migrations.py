"""The schema that migrations make is the one that the tables declare, however often and by however many it is made."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from batchyard.errors import ConfigurationError, Unavailable
from batchyard.store import migrate
from batchyard.store.open import database_url, open_store
from batchyard.store.tables import metadata
from tests.services.store.another_process import look, meet


@pytest.fixture(params=["sqlite", "postgres"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new' / 'batchyard.db'}"
    return str(request.getfixturevalue("postgres_database")())


def test_migrations_make_what_the_tables_declare(empty_database: str) -> None:
    migrate.upgrade(empty_database)
    engine = migrate.engine(empty_database)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "target_metadata": metadata})
        assert _without_comments(compare_metadata(context, metadata)) == []
        made = {
            name: sorted(index["name"] or "" for index in sa.inspect(connection).get_indexes(name))
            for name in metadata.tables
        }
    engine.dispose()
    declared = {name: sorted(str(index.name) for index in table.indexes) for name, table in metadata.tables.items()}
    for name, indexes in declared.items():
        assert set(indexes) <= set(made[name])


def _without_comments(found: list[object]) -> list[object]:
    """What the comments of columns say stands in `tables` alone."""
    flat = [one for each in found for one in (each if isinstance(each, list) else [each])]
    return [one for one in flat if isinstance(one, tuple) and "comment" not in str(one[0])]


def test_partial_indexes_have_the_conditions_that_statements_repeat(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'batchyard.db'}"
    migrate.upgrade(url)
    engine = migrate.engine(url)
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
        )
        made = {name: " ".join(sql.split()) for name, sql in rows}
    engine.dispose()
    for table in metadata.tables.values():
        for index in table.indexes:
            condition = index.dialect_options["sqlite"]["where"]
            if condition is not None:
                assert made[str(index.name)].endswith(f"WHERE {condition.text}")


def test_upgrading_again_changes_nothing(empty_database: str) -> None:
    assert migrate.current(empty_database) is None
    migrate.upgrade(empty_database)
    assert migrate.current(empty_database) == migrate.newest()
    migrate.upgrade(empty_database)
    migrate.check(empty_database)


def test_several_upgrades_at_once_make_one_schema(empty_database: str) -> None:
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as processes:
        for done in [processes.submit(migrate.upgrade, empty_database) for _ in range(3)]:
            done.result()
    migrate.check(empty_database)


def test_many_who_meet_new_sqlite_files_at_once_wait_for_one_another(tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path / f'{n}.db'}" for n in range(30)]
    spawning = multiprocessing.get_context("spawn")
    together = spawning.Barrier(4)
    with ProcessPoolExecutor(4, mp_context=spawning, initializer=meet, initargs=(together,)) as processes:
        for looking in [processes.submit(look, urls) for _ in range(4)]:
            assert looking.result() == [None] * len(urls)


def test_a_database_without_its_schema_is_refused_with_what_to_do(empty_database: str, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="batchyard migrate") as refused:
        open_store(empty_database, state_dir=tmp_path)
    assert refused.value.retry_after_seconds is not None


def test_sqlite_alone_is_a_file_in_the_state_folder(tmp_path: Path) -> None:
    url = database_url("sqlite", state_dir=tmp_path)
    migrate.upgrade(url)
    open_store("sqlite", state_dir=tmp_path).close()
    assert (tmp_path / "batchyard.db").exists()


def test_other_databases_are_not_supported(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="postgresql"):
        open_store("mysql://localhost/x", state_dir=tmp_path)


def test_older_code_works_on_a_newer_schema_and_leaves_it_as_it_is(empty_database: str, tmp_path: Path) -> None:
    migrate.upgrade(empty_database)
    engine = migrate.engine(empty_database)
    for version, refusal in (("0999", None), ("1000", "too old"), ("0001", "batchyard migrate")):
        with engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{version}'")
        if refusal is None:
            migrate.upgrade(empty_database)
            assert migrate.current(empty_database) == version
            store = open_store(empty_database, state_dir=tmp_path)
            assert store.probe() == version
            store.close()
        else:
            with pytest.raises(Unavailable, match=refusal):
                open_store(empty_database, state_dir=tmp_path)
    engine.dispose()
