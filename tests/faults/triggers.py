"""Triggers that write down every change of a job's row and every consumer declared dead, and who reads them.

They exist in the databases of this suite alone, and run inside the transactions that they record.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from pysqlite3 import dbapi2

from batchyard.jobs import State
from tests.faults.history import Death, Transition

_COLUMNS = """
    at_ms, job, came, went, attempt_before, attempt, owner_before, owner, failures_before, failures, crashes_before,
    crashes, preemptions_before, preemptions, cancel_requested, deadline_ms, started_ms, owner_state, owner_lease_ms"""

_TABLES = """
CREATE TABLE faults_changes (
    seq {serial} PRIMARY KEY, at_ms bigint, job bigint, came int, went int, attempt_before int, attempt int,
    owner_before bigint, owner bigint, failures_before int, failures int, crashes_before int, crashes int,
    preemptions_before int, preemptions int, cancel_requested int, deadline_ms bigint, started_ms bigint,
    owner_state text, owner_lease_ms bigint
);
CREATE TABLE faults_deaths (seq {serial} PRIMARY KEY, at_ms bigint, owner bigint, pid int, lease_until_ms bigint);
"""

_MADE = f"""
INSERT INTO faults_changes ({_COLUMNS})
VALUES ({{now}}, NEW.id, NULL, NEW.state, 0, NEW.attempt, NULL, NEW.owner, 0, NEW.failures, 0, NEW.crashes, 0,
    NEW.preemptions, 0, NEW.deadline, NEW.started_at, NULL, NULL);
"""
_DELETED = f"""
INSERT INTO faults_changes ({_COLUMNS})
VALUES ({{now}}, OLD.id, OLD.state, NULL, OLD.attempt, OLD.attempt, OLD.owner, OLD.owner, OLD.failures, OLD.failures,
    OLD.crashes, OLD.crashes, OLD.preemptions, OLD.preemptions, 0, OLD.deadline, OLD.started_at, NULL, NULL);
"""
_MOVED = f"""
INSERT INTO faults_changes ({_COLUMNS})
SELECT {{now}}, NEW.id, OLD.state, NEW.state, OLD.attempt, NEW.attempt, OLD.owner, NEW.owner, OLD.failures,
    NEW.failures, OLD.crashes, NEW.crashes, OLD.preemptions, NEW.preemptions,
    CASE WHEN NEW.cancel_requested THEN 1 ELSE 0 END, NEW.deadline, NEW.started_at,
    (SELECT c.state FROM consumers c WHERE c.id = NEW.owner),
    (SELECT c.lease_until FROM consumers c WHERE c.id = NEW.owner);
"""
_DIED = """
INSERT INTO faults_deaths (at_ms, owner, pid, lease_until_ms) VALUES ({now}, OLD.id, OLD.pid, OLD.lease_until);
"""
# A change of anything else, such as the priority, is nobody's business here, unless the job has ended.
_WHEN_MOVED = """
OLD.state >= 3 OR OLD.state <> NEW.state OR OLD.attempt <> NEW.attempt OR OLD.owner {is_not} NEW.owner
OR OLD.failures <> NEW.failures OR OLD.crashes <> NEW.crashes OR OLD.preemptions <> NEW.preemptions
"""
_WHEN_DIED = "NEW.state = 'dead' AND OLD.state <> 'dead'"

_HAPPENINGS = (
    ("made", "INSERT", "jobs", "", _MADE),
    ("moved", "UPDATE", "jobs", _WHEN_MOVED, _MOVED),
    ("deleted", "DELETE", "jobs", "", _DELETED),
    ("died", "UPDATE", "consumers", _WHEN_DIED, _DIED),
)


def engine(url: str) -> sa.Engine:
    """Of a database of this suite, with the SQLite that the store has. Keeps no connection, for servers come and go."""
    if url.startswith("sqlite"):
        return sa.create_engine(url, module=dbapi2, poolclass=sa.NullPool)
    return sa.create_engine(url, poolclass=sa.NullPool)


def install(url: str) -> None:
    """Put the triggers into a migrated database that nobody uses yet."""
    with engine(url).begin() as connection:
        for statement in _sqlite() if url.startswith("sqlite") else _postgres():
            connection.exec_driver_sql(statement)


def read(connection: sa.Connection) -> Iterator[Transition | Death]:
    """Everything recorded, in order."""
    for row in _select(connection, f"SELECT seq, {_COLUMNS} FROM faults_changes ORDER BY seq"):
        row["came"] = None if row["came"] is None else State(row["came"])
        row["went"] = None if row["went"] is None else State(row["went"])
        row["cancel_requested"] = bool(row["cancel_requested"])
        yield Transition(**row)
    for row in _select(connection, "SELECT at_ms, owner, pid, lease_until_ms FROM faults_deaths ORDER BY seq"):
        yield Death(**row)


def _select(connection: sa.Connection, query: str) -> Iterator[dict[str, Any]]:
    return (dict(row) for row in connection.execute(sa.text(query)).mappings())


def _sqlite() -> Iterator[str]:
    yield from (table for table in _TABLES.format(serial="INTEGER").split(";\n") if table.strip())
    now = "CAST(unixepoch('subsec') * 1000 AS INTEGER)"
    for name, event, table, when, body in _HAPPENINGS:
        guard = f"WHEN {when.format(is_not='IS NOT')}" if when else ""
        yield f"CREATE TRIGGER faults_{name} AFTER {event} ON {table} {guard} BEGIN {body.format(now=now)} END"


def _postgres() -> Iterator[str]:
    yield _TABLES.format(serial="bigserial")
    now = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
    for name, event, table, when, body in _HAPPENINGS:
        guard = f"WHEN ({when.format(is_not='IS DISTINCT FROM')})" if when else ""
        yield (
            f"CREATE FUNCTION faults_{name}() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN {body.format(now=now)} RETURN NULL; END $$"
        )
        yield (
            f"CREATE TRIGGER faults_{name} AFTER {event} ON {table} FOR EACH ROW {guard} "
            f"EXECUTE FUNCTION faults_{name}()"
        )
