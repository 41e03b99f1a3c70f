"""What has been computed, and what is: one row for each, which names the job; that job's own row says how it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Select, and_, or_, select

from batchyard.jobs import ClaimedJob, State
from batchyard.sharing import Computed, Division, Standing, Turn, take_turns
from batchyard.store.deltas import Deltas, JobRow
from batchyard.store.moves import Moves
from batchyard.store.sql import IS_WAITING, JOB_ROW
from batchyard.store.tables import computations, consumers, followers, job_results, jobs

_SUCCEEDED = int(State.SUCCEEDED)
_RESULT = (job_results.c.job_id, jobs.c.tenant_id, job_results.c.format, job_results.c.cost, job_results.c.body)
_STANDING: Select[Any] = select(
    *JOB_ROW, jobs.c.attempt, jobs.c.owner, jobs.c.finished_at, consumers.c.lease_until
).outerjoin_from(jobs, consumers, consumers.c.id == jobs.c.owner)


class _Held(NamedTuple):
    """Who asks, and of what."""

    jobs: Mapping[bytes, Sequence[ClaimedJob]]
    """By key."""
    owner: int
    keep_ms: int
    now_ms: int


class Computations(Moves):
    """One computation shared by all jobs that compute the same.

    A computation's row is locked before jobs are, and jobs in ascending id order, as everywhere. A row that names a job
    which is gone, or has not succeeded, is as good as none.
    """

    def __init__(self) -> None:
        super().__init__()
        # Where this round of `forget_computations` has come to. Owned by the leader's thread.
        self._computations_after = b""

    def share(self, held: Sequence[ClaimedJob], keys: Sequence[bytes], *, owner: int, keep_ms: int) -> Division:
        """See `JobStore.share`."""
        by_key: dict[bytes, list[ClaimedJob]] = {}
        for job, key in zip(held, keys, strict=True):
            by_key.setdefault(key, []).append(job)
        found = self._computed(list(by_key), after_ms=self.now_ms() - keep_ms)
        served = {job.id: found[key] for key in found for job in by_key[key]}
        missing = {key: by_key[key] for key in sorted(by_key.keys() - found.keys())}
        if not missing:
            return Division(served=served)
        deltas = Deltas()
        with self._writing() as connection:
            now = self._database_ms(connection)
            new = self._insert(computations).on_conflict_do_nothing().returning(computations.c.key)
            rows = [
                {"key": key, "job_id": mine[0].id, "keep_ms": keep_ms, "failures": 0} for key, mine in missing.items()
            ]
            made = set(connection.execute(new, rows).scalars())
            alone = {missing[key][0].id for key in made if len(missing[key]) == 1}
            shared = {key: mine for key, mine in missing.items() if key not in made or len(mine) > 1}
            rest = self._divide(connection, _Held(shared, owner, keep_ms, now), deltas=deltas)
            self._record(connection, deltas)
        return Division(computing=rest.computing | alone, following=rest.following, served={**served, **rest.served})

    def _computed(self, keys: Sequence[bytes], *, after_ms: int) -> dict[bytes, Computed]:
        """What was computed by jobs that have finished after then, by key."""
        # The sum keeps planners from partial indexes: the keys are the way in.
        fresh = and_(jobs.c.state + 0 == _SUCCEEDED, jobs.c.finished_at > after_ms)
        known = select(computations.c.key, *_RESULT).join_from(computations, jobs, jobs.c.id == computations.c.job_id)
        known = known.join(job_results, job_results.c.job_id == jobs.c.id).where(computations.c.key.in_(keys), fresh)
        with self._reading() as connection:
            return {bytes(key): computed(*row) for key, *row in connection.execute(known)}

    def _divide(self, connection: Connection, held: _Held, *, deltas: Deltas) -> Division:
        """Take turns with whoever computes the same, all of them locked."""
        if not held.jobs:
            return Division()
        known = select(computations.c.key, computations.c.job_id, computations.c.failures)
        known = known.where(computations.c.key.in_(list(held.jobs))).order_by(computations.c.key).with_for_update()
        found = connection.execute(known).all()
        named = {bytes(row.key): row.job_id for row in found}
        failures = {bytes(row.key): row.failures for row in found}
        ids = {job.id for mine in held.jobs.values() for job in mine} | set(named.values())
        locked = _STANDING.where(self._among(jobs.c.id, sorted(ids))).order_by(jobs.c.id).with_for_update(of=jobs)
        rows = {row.id: row for row in connection.execute(locked)}
        turns: dict[bytes, Turn] = {}
        for key, asking in held.jobs.items():
            mine = [job.id for job in asking if _is_held(rows.get(job.id), job, owner=held.owner)]
            if mine:
                turns[key] = take_turns(
                    mine,
                    _standing(rows.get(named.get(key, 0)), failures=failures.get(key, 0)),
                    now_ms=held.now_ms,
                    keep_ms=held.keep_ms,
                    lease_until_ms=rows[mine[0]].lease_until or held.now_ms,
                )
        self._name(connection, turns, named, keep_ms=held.keep_ms)
        self._follow(connection, turns, named, rows, deltas=deltas)
        return Division(
            computing=frozenset(turn.computing[0] for turn in turns.values() if turn.computing),
            following=frozenset(job_id for turn in turns.values() for job_id in turn.following),
            served=self._served(connection, held, turns, rows),
        )

    def _name(
        self, connection: Connection, turns: Mapping[bytes, Turn], named: Mapping[bytes, int], *, keep_ms: int
    ) -> None:
        """From now on others are to follow the first that computes."""
        rows = [
            {"key": key, "job_id": turn.computing[0], "keep_ms": keep_ms, "failures": turn.failures}
            for key, turn in turns.items()
            if turn.computing and named.get(key) != turn.computing[0]
        ]
        if rows:
            insert = self._insert(computations)
            changed = {name: insert.excluded[name] for name in ("job_id", "keep_ms", "failures")}
            connection.execute(insert.on_conflict_do_update(index_elements=["key"], set_=changed), rows)

    def _follow(
        self,
        connection: Connection,
        turns: Mapping[bytes, Turn],
        named: Mapping[bytes, int],
        rows: Mapping[int, Row[Any]],
        *,
        deltas: Deltas,
    ) -> None:
        """Let jobs wait for those that go first."""
        until: dict[int, list[JobRow]] = {}
        told: list[dict[str, int]] = []
        for key, turn in turns.items():
            first = turn.computing[0] if turn.computing else named.get(key, 0)
            for row in (rows[job_id] for job_id in turn.following):
                until.setdefault(turn.until_ms, []).append(JobRow(*row[: len(JOB_ROW)]))
                told.append({"job_id": row.id, "attempt": row.attempt, "computing_id": first})
        for moment, waiting in until.items():
            self._move(connection, waiting, State.WAITING, deltas=deltas, not_before=moment)
        if told:
            insert = self._insert(followers)
            changed = {"attempt": insert.excluded.attempt, "computing_id": insert.excluded.computing_id}
            connection.execute(insert.on_conflict_do_update(index_elements=["job_id"], set_=changed), told)

    def _served(
        self, connection: Connection, held: _Held, turns: Mapping[bytes, Turn], rows: Mapping[int, Row[Any]]
    ) -> dict[int, Computed]:
        """What was computed while we waited for the locks."""
        by = {turn.served_by: held.jobs[key] for key, turn in turns.items() if turn.served_by is not None}
        if not by:
            return {}
        told = select(*_RESULT).join(jobs, jobs.c.id == job_results.c.job_id)
        found = connection.execute(told.where(self._among(job_results.c.job_id, sorted(by))))
        return {
            job.id: computed(*row)
            for row in found
            for job in by[row.job_id]
            if _is_held(rows.get(job.id), job, owner=held.owner)
        }

    def forget_computations(self, *, limit: int) -> int:
        """See `JobStore.forget_computations`."""
        with self._reading() as connection:
            over = self._outlived(connection, limit=limit)
            ended = connection.execute(_ENDED.limit(limit)).scalars().all()
        if not over and not ended:
            return 0
        with self._writing() as connection:
            # One that names another job by now is not over.
            mine = and_(
                computations.c.key.in_([row.key for row in over]),
                self._among(computations.c.job_id, sorted({row.job_id for row in over})),
            )
            connection.execute(computations.delete().where(mine))
            still = select(jobs.c.id).where(jobs.c.id == followers.c.job_id, IS_WAITING).exists()
            connection.execute(followers.delete().where(self._among(followers.c.job_id, ended), ~still))
        return len(over) + len(ended)

    def _outlived(self, connection: Connection, *, limit: int) -> list[Row[Any]]:
        """Of the next rows, those from which nobody can be served any more."""
        window = select(computations).where(computations.c.key > self._computations_after)
        rows = connection.execute(window.order_by(computations.c.key).limit(limit)).all()
        self._computations_after = bytes(rows[-1].key) if len(rows) == limit else b""
        now = self.now_ms()
        told: Select[Any] = select(jobs.c.id, jobs.c.state, jobs.c.finished_at)
        told = told.where(self._among(jobs.c.id, sorted({row.job_id for row in rows})))
        standing = {row.id: row for row in connection.execute(told)}
        return [row for row in rows if _is_over(standing.get(row.job_id), now_ms=now, keep_ms=row.keep_ms)]


_ENDED = (
    select(followers.c.job_id)
    .outerjoin(jobs, jobs.c.id == followers.c.job_id)
    .where(or_(jobs.c.id.is_(None), jobs.c.state + 0 != int(State.WAITING), jobs.c.attempt != followers.c.attempt))
)
"""Followers that do not wait any more."""


def computed(job_id: int, tenant_id: int, format_: int, cost: int, body: bytes) -> Computed:
    """A row of `_RESULT`."""
    return Computed(job_id=job_id, tenant_id=tenant_id, format=format_, cost=cost, body=bytes(body))


def _is_held(row: Row[Any] | None, job: ClaimedJob, *, owner: int) -> bool:
    """Whether the job is this owner's at this attempt, and still wanted."""
    if row is None or row.cancel_requested:
        return False
    return (row.state, row.attempt, row.owner) == (int(State.RUNNING), job.attempt, owner)


def _standing(row: Row[Any] | None, *, failures: int) -> Standing | None:
    if row is None:
        return None
    # What runs and is not wanted any more ends as cancelled.
    state = State.CANCELLED if row.cancel_requested and row.state == int(State.RUNNING) else State(row.state)
    return Standing(row.id, state, row.finished_at, row.lease_until, failures)


def _is_over(row: Row[Any] | None, *, now_ms: int, keep_ms: int) -> bool:
    if row is None or State(row.state).is_dead:
        return True
    return bool(row.state == _SUCCEEDED and row.finished_at + keep_ms <= now_ms)
