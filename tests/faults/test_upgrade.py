"""A rolling upgrade: the release before this one and this one work on one database and one broker, schema first."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from batchyard.store import migrate
from batchyard.store.open import open_store
from batchyard.webhooks import ALL_EVENTS
from tests.faults import servers, triggers
from tests.faults.checker import check
from tests.faults.history import History, Setting
from tests.faults.load import Load
from tests.faults.members import REPOSITORY, Member, kept, variables
from tests.faults.releases import knows, unpack_last_release, variables_of
from tests.faults.running import audit, drain
from tests.faults.yard import CONFIG, DATABASES, TENANTS, Yard, await_ready, metric
from tests.servers.processes import free_port

LEASE_SECONDS = 3.0
FOR_GOOD_SECONDS = 1e9
STEP_JOBS = 120
STEP_SECONDS = 90.0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_fleet_is_upgraded_one_process_at_a_time(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    old_code = unpack_last_release(tmp_path)
    old_variables = variables_of(old_code)
    assert knows(variables()) == (REPOSITORY, migrate.newest())
    known = knows(old_variables)
    assert known is not None
    assert (known[0], known[1] < str(migrate.newest())) == (old_code, True)

    history = History(setting=Setting(seed=0, lease_ms=round(LEASE_SECONDS * 1000), recovery_ms=30_000))
    with ExitStack() as stack:
        database = stack.enter_context(DATABASES[kind](folder))
        broker = stack.enter_context(servers.valkey())
        config = CONFIG.format(database=database.url, broker=broker.url, lease_seconds=LEASE_SECONDS)
        (folder / "batchyard.toml").write_text(config)
        migrate.upgrade(database.direct)
        triggers.install(database.direct)

        def start(release: str, environment: Mapping[str, str]) -> Yard:
            """An API and a consumer, which serve."""
            port = free_port()
            api = _member(f"api-{release}", "api", "--bind", f"127.0.0.1:{port}", at=folder, of=environment, to=history)
            api.port = port
            consumer = _member(f"worker-{release}", "worker", "--pool", "local", at=folder, of=environment, to=history)
            stack.enter_context(kept([api, consumer]))
            made = Yard(folder, database=database, broker=broker, apis=[api], consumers=[consumer], history=history)
            await_ready(made)
            return made

        old, new = start("old", old_variables), start("new", variables())
        assert (old.leader(), new.leader()) == (old.apis[0], None)
        keys = old.make_keys()
        _listen(database.direct, folder)
        load = Load([*old.urls, *new.urls], keys=keys, history=history, seed=0, clients=6, rate=40.0)
        with load.running():
            _outlast(load, until=lambda: len(_workers(old)) == 2)
            for member in (*old.consumers, *old.apis):
                member.send(signal.SIGKILL, stay_away_seconds=FOR_GOOD_SECONDS)
                _outlast(load, until=lambda: True)
        assert drain(new, stuck_seconds=3 * LEASE_SECONDS + 10), old.logs()
        assert metric(new.urls[0], "leader") == 1
        audit(new, keys, load, streams=True)
        new.record()
        untold = new.select(_UNTOLD)

    assert len(history.rows) >= 3 * STEP_JOBS
    assert check(history) == []
    assert untold == []


_UNTOLD = """
SELECT j.id FROM jobs j JOIN webhooks w ON w.tenant_id = j.tenant_id
WHERE j.state >= 3 AND NOT EXISTS (
    SELECT 1 FROM webhook_deliveries d WHERE d.subject_id = j.id AND d.webhook_id = w.id
)"""
"""Jobs whose end no webhook will tell of."""


def _listen(url: str, folder: Path) -> None:
    """Have an endpoint that nobody answers at: what is put into the outbox stays there."""
    store = open_store(url, state_dir=folder)
    tenant_of = {tenant.name: tenant.id for tenant in store.tenants()}
    store.create_webhook(
        tenant_id=tenant_of[TENANTS[0]], url="https://receiver.invalid/", events=ALL_EVENTS, description=""
    )
    store.close()


def _member(role: str, *arguments: str, at: Path, of: Mapping[str, str], to: History) -> Member:
    return Member(role, *arguments, folder=at, variables=of, history=to)


def _workers(made: Yard) -> set[int]:
    """The processes whose results there are."""
    finished = "SELECT DISTINCT c.pid FROM job_results r JOIN consumers c ON c.id = r.completed_by"
    return {row.pid for row in made.select(finished)}


def _outlast(load: Load, *, until: Callable[[], bool]) -> None:
    """Let clients go on until so many more jobs have been accepted, and something has come true."""
    wanted, give_up = load.jobs + STEP_JOBS, time.monotonic() + STEP_SECONDS
    while load.jobs < wanted or not until():
        load.check()
        assert time.monotonic() < give_up, f"{load.jobs - wanted + STEP_JOBS} jobs were accepted meanwhile"
        time.sleep(0.05)
