"""A database that is put back from a backup, as the README says: no claim from before may write."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from pysqlite3 import dbapi2

from batchyard.jobs import State
from batchyard.store import migrate
from batchyard.store.base import JobStore
from batchyard.store.open import open_store
from tests.servers.postgres import server_binaries
from tests.services.store.yard import Yard, check_ledgers, succeeded
from tests.services.up import environment


class Saved:
    """A database in use, and what was saved of it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        migrate.upgrade(url)
        self.opened: list[JobStore] = []
        (folder / "batchyard.toml").write_text(f'[database]\nurl = "{url}"\n')

    def open(self) -> JobStore:
        self.opened.append(open_store(self.url, state_dir=self.folder))
        return self.opened[-1]

    def close(self) -> None:
        while self.opened:
            self.opened.pop().close()

    def save(self) -> None:
        raise NotImplementedError

    def put_back(self) -> None:
        raise NotImplementedError

    def migrate_restored(self) -> str:
        command = [sys.executable, "-m", "batchyard.cli", "migrate", "--restored"]
        done = subprocess.run(command, cwd=self.folder, env=environment(), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout


class SavedSqlite(Saved):
    def __init__(self, folder: Path) -> None:
        self._path = folder / "batchyard.db"
        super().__init__(folder, f"sqlite:///{self._path}")

    def save(self) -> None:
        raw = dbapi2.connect(str(self._path))
        raw.execute("VACUUM INTO ?", (str(self.folder / "saved.db"),))
        raw.close()

    def put_back(self) -> None:
        self.close()
        for beside in ("-wal", "-shm"):
            Path(f"{self._path}{beside}").unlink(missing_ok=True)
        shutil.copy(self.folder / "saved.db", self._path)


class SavedPostgres(Saved):
    def save(self) -> None:
        """While it is in use."""
        self._run("pg_dump", "--format=custom", f"--file={self.folder / 'saved'}", self._address)

    def put_back(self) -> None:
        self.close()
        name = str(psycopg.conninfo.conninfo_to_dict(self._address)["dbname"])
        with psycopg.connect(self._address, dbname="postgres", autocommit=True) as session:
            for statement in ("DROP DATABASE {} WITH (FORCE)", "CREATE DATABASE {}"):
                session.execute(sql.SQL(statement).format(sql.Identifier(name)))
        self._run("pg_restore", "--exit-on-error", f"--dbname={self._address}", os.fspath(self.folder / "saved"))

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run([server_binaries() / program, *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    @property
    def _address(self) -> str:
        return self.url.replace("+psycopg", "")


@pytest.fixture(params=["sqlite", "postgres"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Saved]:
    if request.param == "sqlite":
        made: Saved = SavedSqlite(tmp_path)
    else:
        create: Callable[[], str] = request.getfixturevalue("postgres_database")
        made = SavedPostgres(tmp_path, create())
    yield made
    made.close()


def test_no_claim_from_before_a_restore_may_write(saved: Saved) -> None:
    yard = Yard(saved.open())
    claimed_before = yard.claim(yard.submit(3))
    queued = yard.submit(2)
    saved.save()

    yard.store = saved.open()
    claimed_after = yard.claim(queued)
    lost = yard.claim(yard.submit(2))
    newcomer = yard.consumer()
    of_newcomer = yard.claim(yard.submit(1), owner=newcomer)
    saved.put_back()
    assert "queued again" in saved.migrate_restored()

    # The consumers live on, with the same owners, and write what they have.
    yard.store = saved.open()
    outcomes = [succeeded(job) for job in (*claimed_before, *claimed_after, *lost)]
    assert yard.finish(outcomes) == []
    assert yard.finish([succeeded(job) for job in of_newcomer], owner=newcomer) == []
    assert yard.store.release(claimed_before, owner=yard.owner) == []
    ids = [job.id for job in (*claimed_before, *claimed_after)]
    assert yard.states(ids) == [State.QUEUED] * 5
    assert yard.claim(ids) == [], "who was registered before claims nothing either"
    for owner in (yard.owner, newcomer):
        assert not yard.store.renew(owner, lease_ms=60_000, state="ready", stats={}).alive

    # Registered anew, they claim what they had, and the old claims still write nothing.
    before, yard.owner = yard.owner, yard.consumer()
    again = yard.claim(ids)
    assert sorted(job.id for job in again) == sorted(ids)
    assert {(view.crashes, view.preemptions, view.failures) for view in map(yard.view, ids)} == {(0, 0, 0)}
    assert yard.finish(outcomes, owner=before) == []
    assert sorted(yard.finish([succeeded(job) for job in again])) == sorted(ids)
    assert sum(row.jobs for row in yard.store.usage()) == 5
    check_ledgers(yard.store)


def test_nobody_leads_and_numbers_of_processes_are_new_after_a_restore(saved: Saved) -> None:
    store = saved.open()
    assert store.lead("dispatcher", holder=1, lease_ms=600_000)
    node = store.take_node()
    saved.save()
    since = {saved.open().take_node() for _ in range(3)}
    saved.put_back()
    saved.migrate_restored()
    store = saved.open()
    assert store.lead("dispatcher", holder=2, lease_ms=600_000)
    assert store.take_node() not in {node, *since}
