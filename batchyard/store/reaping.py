"""What dead consumers held goes back to its queues, and what ended them is charged with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Select, and_, select

from batchyard.blame import Death, Record, charged, crash_error
from batchyard.jobs import ID_STRIDE, State
from batchyard.store.deltas import Deltas, JobRow
from batchyard.store.moves import Moves
from batchyard.store.sql import IS_RUNNING, JOB_ROW, PREEMPTED
from batchyard.store.tables import consumers, counters, job_results, jobs, leases
from batchyard.store.views import ERROR, dump_error

_PRESENT = ("starting", "ready", "draining")
DISOWN_JOBS = 1000
"""Taken back in one transaction."""

_HELD: Select[Any] = select(
    jobs.c.id,
    jobs.c.suspect,
    jobs.c.crashes,
    jobs.c.unexplained,
    jobs.c.attempt,
    jobs.c.owner,
    consumers.c.state,
    consumers.c.executing,
    consumers.c.cause,
    consumers.c.preempted_at,
).join_from(jobs, consumers, consumers.c.id == jobs.c.owner)


class _Verdict(NamedTuple):
    """What is known against one job from now on, and what of; `death` is None for a consumer that left in order
    or lost its machine."""

    held: Row[Any]
    record: Record
    death: Death | None


class Reaping(Moves):
    """How consumers that end without a word are noticed, by their lease or by whoever saw them die."""

    def note_solo(self, owner: int, *, job_id: int | None) -> None:
        """See `JobStore.note_solo`."""
        told = None if job_id is None else json.dumps([job_id])
        with self._writing() as connection:
            present = and_(consumers.c.id == owner, consumers.c.state.in_(_PRESENT))
            connection.execute(consumers.update().where(present).values(executing=told))

    def bury(self, owner: int, *, executing: Sequence[int], cause: str | None = None) -> bool:
        """See `JobStore.bury`."""
        with self._writing() as connection:
            now = self._database_ms(connection)
            present = and_(consumers.c.id == owner, consumers.c.state.in_(_PRESENT))
            told = {"executing": json.dumps(sorted(set(executing))), "cause": cause}
            dead = consumers.update().where(present).values(state="dead", lease_until=now, **told)
            return connection.execute(dead).rowcount > 0

    def reap(self, *, limit: int) -> dict[int, list[int]]:
        """See `JobStore.reap`."""
        deltas = Deltas()
        over = and_(consumers.c.state.in_(_PRESENT), consumers.c.lease_until < self.now_ms())
        # Also of consumers that left: a claim of theirs may have committed while they were leaving.
        away = select(consumers.c.id).where(consumers.c.state.in_(("dead", "gone")))
        owned = select(*JOB_ROW).where(IS_RUNNING, jobs.c.owner.in_(away)).limit(limit)
        if not self._finds(select(consumers.c.id).where(over), owned):
            return {}
        with self._writing() as connection:
            now = self._database_ms(connection)
            over = and_(consumers.c.state.in_(_PRESENT), consumers.c.lease_until < now)
            connection.execute(consumers.update().where(over).values(state="dead"))
            rows = self._lock_jobs(connection, owned)
            queued = self._take_back(connection, rows, deltas=deltas, now_ms=now) if rows else {}
            self._record(connection, deltas)
        return queued

    def disown(self) -> None:
        """See `JobStore.disown`."""
        away = select(consumers.c.id).where(consumers.c.state.in_(("dead", "gone")))
        owned = select(jobs.c.id).where(IS_RUNNING, jobs.c.owner.in_(away))
        with self._writing() as connection:
            now = self._database_ms(connection)
            present = consumers.c.state.in_(_PRESENT)
            connection.execute(consumers.update().where(present).values(state="gone", lease_until=now))
            connection.execute(leases.update().values(until=0))
            # The nodes given out since the backup are unknown here, and ids are told apart by them.
            connection.execute(counters.update().values(value=counters.c.value + ID_STRIDE // 2))
        while self._finds(owned):
            self.reap(limit=DISOWN_JOBS)

    def _take_back(
        self, connection: Connection, rows: Sequence[JobRow], *, deltas: Deltas, now_ms: int
    ) -> dict[int, list[int]]:
        """Requeue what dead consumers held, each with what is known against it now; fail what has ended too many."""
        verdicts = self._verdicts(connection, rows)
        guilty: list[JobRow] = []
        by_record: dict[tuple[Record, bool], list[JobRow]] = {}
        for row in rows:
            record, is_preempted = verdicts[row.id].record, verdicts[row.id].held.preempted_at is not None
            is_over = record.is_fatal and not row.cancel_requested
            alike = guilty if is_over else by_record.setdefault((record, is_preempted), [])
            alike.append(row)
        self._fail(connection, guilty, verdicts, deltas=deltas, now_ms=now_ms)
        queued: dict[int, list[int]] = {}
        for (record, is_preempted), alike in by_record.items():
            known: dict[str, Any] = dict(PREEMPTED) if is_preempted else {}
            known |= {"suspect": record.suspect, "crashes": record.crashes, "unexplained": record.unexplained}
            back = self._requeue(connection, alike, deltas=deltas, now_ms=now_ms, **known)
            for queue_id, ids in back.items():
                queued[queue_id] = sorted([*queued.get(queue_id, ()), *ids])
        return queued

    def _verdicts(self, connection: Connection, rows: Sequence[JobRow]) -> dict[int, _Verdict]:
        verdicts: dict[int, _Verdict] = {}
        for held in connection.execute(_HELD.where(self._among(jobs.c.id, [row.id for row in rows]))):
            record = Record(suspect=bool(held.suspect), crashes=held.crashes, unexplained=held.unexplained)
            death = _death(held)
            verdicts[held.id] = _Verdict(held, record if death is None else charged(held.id, record, death), death)
        return verdicts

    def _fail(
        self,
        connection: Connection,
        rows: Sequence[JobRow],
        verdicts: Mapping[int, _Verdict],
        *,
        deltas: Deltas,
        now_ms: int,
    ) -> None:
        """End jobs as their consumers would have, had they lived."""
        for row in rows:
            held, record, death = verdicts[row.id]
            assert death is not None
            known = {"suspect": record.suspect, "crashes": record.crashes, "finished_at": now_ms}
            self._move(connection, [row], State.FAILED, deltas=deltas, **known)
            body = dump_error(crash_error(record, death))
            result = {
                "format": ERROR,
                "cost": 0,
                "device_us": 0,
                "attempt": held.attempt,
                "completed_by": held.owner,
                "body": body,
            }
            # A retry may have left the error before this one.
            insert = self._insert(job_results).values(job_id=row.id, **result)
            connection.execute(insert.on_conflict_do_update(index_elements=["job_id"], set_=result))
            deltas.use(tenant_id=row.tenant_id, queue_id=row.queue_id, now_ms=now_ms, result_bytes=len(body))


def _death(held: Row[Any]) -> Death | None:
    if held.state != "dead" or held.preempted_at is not None:
        return None
    executing = None if held.executing is None else frozenset(json.loads(held.executing))
    return Death(executing=executing, cause=held.cause)
