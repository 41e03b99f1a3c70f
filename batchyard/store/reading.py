"""Readers of jobs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence, Set
from itertools import accumulate
from typing import Any, NamedTuple

from msgspec.structs import replace
from sqlalchemy import Connection, Row, Select, case, func, literal, literal_column, or_, select, tuple_

from batchyard.jobs import State, redrive_key
from batchyard.store.base import JobFilter, JobInput, JobPage, JobView
from batchyard.store.progress import Progress
from batchyard.store.sql import IS_RUNNING, IS_WAITING
from batchyard.store.tables import (
    followers,
    idempotency,
    job_inputs,
    job_labels,
    job_results,
    job_webhooks,
    jobs,
    tombstones,
)
from batchyard.store.views import ERROR, job_view, view_query

PAGE_SCAN = 5_000
"""Rows that a page of a listing looks at, at most."""

MAX_ID = (1 << 63) - 1

_RARE = or_(IS_WAITING, jobs.c.state > literal_column("3"))
_RARE_STATES = {State.WAITING, State.FAILED, State.CANCELLED, State.EXPIRED}
"""In the partial index of this condition, by tenant, state and id."""


class _Candidates(NamedTuple):
    """Ids among which a page is looked for, the newest first."""

    newest: Select[tuple[int]]
    is_exact: bool
    """All of them fit, so that nothing is looked at in vain."""


class Readers(Progress):
    """What pollers and listings ask."""

    def get_jobs(self, ids: Sequence[int], *, tenant_id: int, results: bool = True) -> list[JobView]:
        """See `JobStore.get_jobs`."""
        return self._linked(self._jobs(ids, tenant_id=tenant_id, results=results), tenant_id=tenant_id, partial=results)

    @abstractmethod
    def _jobs(self, ids: Sequence[int], *, tenant_id: int, results: bool) -> list[JobView]:
        """`get_jobs`, without what only dead jobs have."""

    def _linked(self, views: list[JobView], *, tenant_id: int, partial: bool = False) -> list[JobView]:
        """The views, dead ones with the jobs that took their places, and running ones with what is there so far."""
        running = [(view.id, view.attempt) for view in views if view.state == State.RUNNING] if partial else []
        if running:
            told = self._partial(running)
            views = [replace(view, partial_body=told[view.id]) if view.id in told else view for view in views]
        waiting = {(view.id, view.attempt) for view in views if view.state == State.WAITING}
        if waiting:
            follow = self._following(waiting)
            views = [replace(view, is_following=True) if (view.id, view.attempt) in follow else view for view in views]
        keys = {redrive_key(view.id): view.id for view in views if view.state.is_dead}
        if not keys:
            return views
        made = select(idempotency.c.key, idempotency.c.first_id)
        made = made.where(idempotency.c.tenant_id == tenant_id, idempotency.c.bulk_id == 0, idempotency.c.key.in_(keys))
        with self._reading() as connection:
            taken = {keys[key]: first_id for key, first_id in connection.execute(made)}
        return [replace(view, redriven_as=taken[view.id]) if view.id in taken else view for view in views]

    def _following(self, waiting: Set[tuple[int, int]]) -> Set[tuple[int, int]]:
        """Of waiting jobs and their attempts, those that let another job go first."""
        told = select(followers.c.job_id, followers.c.attempt)
        told = told.where(self._among(followers.c.job_id, sorted(job_id for job_id, _ in waiting)))
        with self._reading() as connection:
            return waiting & {(row.job_id, row.attempt) for row in connection.execute(told)}

    def get_inputs(self, ids: Sequence[int], *, tenant_id: int, max_bytes: int) -> list[JobInput]:
        """See `JobStore.get_inputs`."""
        mine = select(jobs.c.id, func.length(job_inputs.c.body).label("size"))
        mine = mine.join(job_inputs, job_inputs.c.job_id == jobs.c.id)
        mine = mine.where(self._among(jobs.c.id, ids), jobs.c.tenant_id == tenant_id)
        with self._reading() as connection:
            size_of = {row.id: row.size for row in connection.execute(mine)}
            known = [job_id for job_id in dict.fromkeys(ids) if job_id in size_of]
            sums = accumulate(size_of[job_id] for job_id in known)
            fitting = [job_id for job_id, total in zip(known, sums, strict=True) if total <= max_bytes] or known[:1]
            given = select(job_inputs, job_webhooks.c.url.label("webhook")).outerjoin(
                job_webhooks, job_webhooks.c.job_id == job_inputs.c.job_id
            )
            rows = connection.execute(given.where(self._among(job_inputs.c.job_id, fitting)))
            found = {row.job_id: _input(row) for row in rows}
        return [found[job_id] for job_id in fitting]

    def finished_among(self, ids: Sequence[int]) -> list[int]:
        """See `JobStore.finished_among`."""
        if not ids:
            return []
        unfinished = select(jobs.c.id).where(self._among(jobs.c.id, ids), jobs.c.state < int(State.SUCCEEDED))
        with self._reading() as connection:
            waiting = set(connection.execute(unfinished).scalars())
        return [job_id for job_id in ids if job_id not in waiting]

    def retired_among(self, ids: Sequence[int], *, tenant_id: int) -> list[int]:
        """See `JobStore.retired_among`."""
        if not ids:
            return []
        buried = select(tombstones.c.id).where(self._among(tombstones.c.id, ids), tombstones.c.tenant_id == tenant_id)
        with self._reading() as connection:
            return list(connection.execute(buried).scalars())

    def list_jobs(self, filter: JobFilter) -> JobPage:  # noqa: A002  the protocol's name
        """See `JobStore.list_jobs`. Running and rare states are found by index; else a page looks at PAGE_SCAN rows."""
        with self._reading() as connection:
            ids, next_before_id = self._page(connection, filter)
            wanted = view_query(results=False).where(self._among(jobs.c.id, ids))
            views = [job_view(row) for row in connection.execute(wanted)] if ids else []
        views = self._linked(views, tenant_id=filter.tenant_id)
        return JobPage(jobs=sorted(views, key=lambda view: -view.id), next_before_id=next_before_id)

    def _page(self, connection: Connection, wanted: JobFilter) -> tuple[list[int], int | None]:
        """The ids of a page, and the cursor of the next page, if there may be one."""
        before_id = MAX_ID if wanted.before_id is None else wanted.before_id
        candidates = self._candidates(wanted, before_id)
        if candidates.is_exact:
            ids = self._ids(connection, candidates.newest, wanted)
            return ids, ids[-1] if len(ids) == wanted.limit else None
        scanned = candidates.newest.limit(PAGE_SCAN).subquery()
        found = select(jobs.c.id).join(scanned, scanned.c.id == jobs.c.id).order_by(scanned.c.id.desc())
        ids = self._ids(connection, found, wanted)
        if len(ids) == wanted.limit:
            return ids, ids[-1]
        count, last = connection.execute(select(func.count(), func.min(scanned.c.id)).select_from(scanned)).one()
        return ids, last if count == PAGE_SCAN else None

    def _candidates(self, wanted: JobFilter, before_id: int) -> _Candidates:
        if wanted.label is not None:
            labelled = select(job_labels.c.job_id.label("id")).where(job_labels.c.tenant_id == wanted.tenant_id)
            labelled = labelled.where(job_labels.c.label == wanted.label, job_labels.c.job_id < before_id)
            return _Candidates(labelled.order_by(job_labels.c.job_id.desc()), is_exact=False)
        if wanted.state is State.RUNNING:
            # As many as consumers hold, sorted; the sums keep planners from walking through all jobs by id instead.
            running = select(jobs.c.id).where(IS_RUNNING, jobs.c.owner > 0, jobs.c.id + 0 < before_id)
            return _Candidates(self._narrowed(running, wanted).order_by((jobs.c.id + 0).desc()), is_exact=True)
        if wanted.state in _RARE_STATES:
            asks_more = wanted.queue_ids, wanted.error_code, wanted.finished_from_ms, wanted.finished_before_ms
            return _Candidates(
                _rare(wanted.tenant_id, wanted.state, before_id), is_exact=asks_more == (None, None, None, None)
            )
        return _Candidates(select(jobs.c.id).where(jobs.c.id < before_id).order_by(jobs.c.id.desc()), is_exact=False)

    def _ids(self, connection: Connection, found: Select[tuple[int]], wanted: JobFilter) -> list[int]:
        found = self._narrowed(found, wanted)
        if wanted.finished_from_ms is not None:
            found = found.where(jobs.c.finished_at >= wanted.finished_from_ms)
        if wanted.finished_before_ms is not None:
            found = found.where(jobs.c.finished_at < wanted.finished_before_ms)
        if wanted.error_code is not None:
            # Of errors alone, in whichever order the conditions are looked at.
            error = case((job_results.c.format == ERROR, job_results.c.body))
            found = found.join(job_results, job_results.c.job_id == jobs.c.id)
            found = found.where(self._text_member(error, "code") == wanted.error_code)
        ids: list[int] = list(connection.execute(found.limit(wanted.limit)).scalars())  # type: ignore[arg-type]
        return ids

    def _narrowed(self, found: Select[tuple[int]], wanted: JobFilter) -> Select[tuple[int]]:
        found = found.where(jobs.c.tenant_id == wanted.tenant_id)
        if wanted.queue_ids is not None:
            found = found.where(jobs.c.queue_id.in_(wanted.queue_ids))
        if wanted.state is not None:
            # A sum here too: a partial index of all queued jobs may look short to a planner without statistics.
            found = found.where(jobs.c.state + 0 == literal_column(str(int(wanted.state))))
        return found


def _rare(tenant_id: int, state: State, before_id: int) -> Select[tuple[int]]:
    """Jobs of a rare state, the newest first. Rows are compared as wholes: only the index has that order, so none is
    sorted however many there are, and no planner walks through all jobs by id instead."""
    row = (jobs.c.tenant_id, jobs.c.state, jobs.c.id)
    first, last = (tuple_(*map(literal, (tenant_id, int(state), bound))) for bound in (0, before_id))
    found = select(jobs.c.id).where(_RARE, tuple_(*row) >= first, tuple_(*row) < last)
    return found.order_by(*(column.desc() for column in row))


def _input(row: Row[Any]) -> JobInput:
    return JobInput(
        id=row.job_id,
        body=bytes(row.body),
        params=None if row.params is None else bytes(row.params),
        affinity_key=row.affinity_key,
        max_cost=row.max_cost,
        digest=None if row.input_digest is None else bytes(row.input_digest),
        webhook=row.webhook,
    )
