"""Dead jobs become new ones that name the old; for the API and `Client.direct`.

A job is redriven once: its successor's idempotency key is made from its id, so that whoever redrives it again, in
another call or at the same moment, is told of the job that took its place. So every call, and every step through a
filter, may be repeated, also by somebody else.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from datetime import datetime
from typing import TypeAlias, TypeVar

import msgspec

from batchyard.catalog import Catalog
from batchyard.errors import (
    BatchyardError,
    Conflict,
    Gone,
    InvalidRequest,
    NotFound,
    QueueFull,
    RateLimited,
    ServerError,
    Unavailable,
    UnknownModel,
)
from batchyard.jobs import Accepted, ErrorInfo, State, Submission, format_id, parse_id
from batchyard.schemas import Moment, RedriveAnswer, Redriven, RedriveRequest, SubmittedJob, rfc3339
from batchyard.store.base import JobFilter, JobInput, JobPage, JobStore, JobView
from batchyard.submission import Caller, Submitter

PIECE_BYTES = 16 * 1024 * 1024
"""Inputs in memory at a time."""

T = TypeVar("T")
Outcome: TypeAlias = Accepted | BaseException
Steps: TypeAlias = Generator[Sequence[Submission], Sequence[Outcome], T]
"""Yields what is to be committed and is sent, in order, what each submission became. Every step may block."""


class Redriver:
    """Safe to share between threads."""

    def __init__(self, store: JobStore, *, catalog: Catalog, submitter: Submitter) -> None:
        self._store = store
        self._catalog = catalog
        self._submitter = submitter

    def one(self, job_id: int, *, to: str | None, caller: Caller) -> Steps[SubmittedJob]:
        """POST /v1/jobs/{id}/redrive: the job that takes its place. Raises NotFound, Gone, Conflict, and what
        submitting raises."""
        self._resolve(to)
        case = _Case(format_id(job_id), job_id)
        yield from self._redrive([case], to=to, caller=caller)
        if case.error is not None:
            raise case.error
        assert case.successor is not None
        name = format_id(case.successor)
        for view in self._store.get_jobs([case.successor], tenant_id=caller.tenant_id, results=False):
            load = self._catalog.load(view.queue_id)
            return SubmittedJob(
                id=name,
                model=load.version.name,
                lane=load.lane.word,  # type: ignore[arg-type]
                state=view.state.word,  # type: ignore[arg-type]
                created_at=rfc3339(view.created_at_ms),
                replayed=case.already,
            )
        raise Gone(f"job {case.name} was redriven as {name}, which is no longer kept", redriven_as=name)

    def some(self, request: RedriveRequest, *, caller: Caller) -> Steps[RedriveAnswer]:
        """POST /v1/jobs/redrive, one step. Raises InvalidRequest, UnknownModel, QueueFull, Unavailable."""
        if (request.ids is None) == (request.where is None):
            raise InvalidRequest("give exactly one of `ids` and `where`", pointer="")
        if request.ids is not None and request.after is not None:
            raise InvalidRequest("`after` goes with `where`", pointer="/after")
        self._resolve(request.to)
        page = None if request.ids is not None else self._page(request, tenant_id=caller.tenant_id)
        names = request.ids if page is None else [format_id(view.id) for view in page.jobs]
        cases = [_Case(name, parse_id(name)) for name in dict.fromkeys(names or ())]
        if request.dry_run:
            self._look(cases, tenant_id=caller.tenant_id)
        else:
            yield from self._redrive(cases, to=request.to, caller=caller)
        following = None if page is None or page.next_before_id is None else format_id(page.next_before_id)
        return RedriveAnswer(
            jobs=[case.told() for case in cases],
            count=sum(case.error is None and not case.already for case in cases),
            next=following,
        )

    def _resolve(self, to: str | None) -> None:
        """UnknownModel before anything is done; another process may have configured it a moment ago."""
        if to is None:
            return
        try:
            self._catalog.resolve(to)
        except UnknownModel:
            self._catalog.refresh(older_than_seconds=0.5)
            self._catalog.resolve(to)

    def _page(self, request: RedriveRequest, *, tenant_id: int) -> JobPage:
        wanted = request.where
        assert wanted is not None
        before_id = None if request.after is None else parse_id(request.after)
        if request.after is not None and before_id is None:
            raise InvalidRequest("after must be the `next` of an earlier step", pointer="/after")
        return self._store.list_jobs(
            JobFilter(
                tenant_id=tenant_id,
                state=State[wanted.state.upper()],
                queue_ids=None if wanted.model is None else self._catalog.queue_ids(wanted.model),
                label=wanted.label,
                error_code=wanted.error,
                finished_from_ms=unix_ms(wanted.finished_from),
                finished_before_ms=unix_ms(wanted.finished_before),
                before_id=before_id,
                limit=request.limit,
            )
        )

    def _redrive(self, cases: Sequence[_Case], *, to: str | None, caller: Caller) -> Steps[None]:
        self._look(cases, tenant_id=caller.tenant_id)
        # In the order in which they were submitted, whatever the order asked for.
        pending = sorted((case for case in cases if case.is_open), key=lambda case: case.number or 0)
        while pending:
            given = self._next_inputs(pending, tenant_id=caller.tenant_id)
            piece = [(case, given[case.number]) for case in pending if case.number in given]
            yield from self._commit(piece, to=to, caller=caller)
            pending = [case for case in pending if case.is_open]
        self._name_models(cases, to=to, tenant_id=caller.tenant_id)

    def _look(self, cases: Sequence[_Case], *, tenant_id: int) -> None:
        """Find the jobs; note what speaks against redriving them, and what was redriven before."""
        numbers = [case.number for case in cases if case.number is not None]
        views = {view.id: view for view in self._store.get_jobs(numbers, tenant_id=tenant_id, results=False)}
        absent = [number for number in numbers if number not in views]
        retired = set(self._store.retired_among(absent, tenant_id=tenant_id)) if absent else set()
        for case in cases:
            case.view = None if case.number is None else views.get(case.number)
            if case.view is None:
                case.error = _gone(case) if case.number in retired else NotFound(f'there is no job "{case.name[:64]}"')
            elif not case.view.state.is_dead:
                case.error = Conflict(
                    "only a job that failed, expired or was cancelled can be redriven; "
                    f"{case.name} is {case.view.state.word}"
                )
            elif case.view.redriven_as is not None:
                case.successor, case.already = case.view.redriven_as, True

    def _next_inputs(self, pending: Sequence[_Case], *, tenant_id: int) -> dict[int | None, JobInput]:
        """Of the first few; those that were deleted meanwhile are noted."""
        numbers = [case.number for case in pending if case.number is not None]
        given = self._store.get_inputs(numbers, tenant_id=tenant_id, max_bytes=PIECE_BYTES)
        last = given[-1].id if given else numbers[-1]
        found: dict[int | None, JobInput] = {each.id: each for each in given}
        for case in pending:
            if case.number not in found and (case.number or 0) <= last:
                case.error = _gone(case)
        return found

    def _commit(self, piece: Sequence[tuple[_Case, JobInput]], *, to: str | None, caller: Caller) -> Steps[None]:
        """Submit successors. A queue that has no room for all takes those that it has room for."""
        ready: list[tuple[_Case, Submission]] = []
        full: QueueFull | RateLimited | None = None
        for case, given in piece:
            assert case.view is not None
            try:
                made = self._submitter.redrive(case.view, given, to=to, caller=caller, now_ms=self._store.now_ms())
            except (QueueFull, RateLimited) as refusal:
                full = refusal
                break
            except BatchyardError as refusal:
                case.error = refusal
            else:
                ready.append((case, made))
        outcomes = (yield [submission for _, submission in ready]) if ready else ()
        for (case, _), outcome in zip(ready, outcomes, strict=True):
            if isinstance(outcome, Accepted):
                case.successor, case.already = outcome.ids[0], outcome.replayed
            elif isinstance(outcome, Unavailable):
                raise outcome
            else:
                case.error = outcome if isinstance(outcome, BatchyardError) else ServerError("it could not be stored")
        if full is not None:
            raise full

    def _name_models(self, cases: Sequence[_Case], *, to: str | None, tenant_id: int) -> None:
        """Say of which version the successors are; one of another than asked for now is in the way."""
        made = [case.successor for case in cases if case.successor is not None]
        views = self._store.get_jobs(made, tenant_id=tenant_id, results=False)
        version_of = {view.id: self._catalog.load(view.queue_id).version for view in views}
        for case in cases:
            version = None if case.successor is None else version_of.get(case.successor)
            if case.successor is None or version is None:
                continue
            case.model = version.name
            if case.already and to is not None and to not in {version.name, version.model}:
                case.error = Conflict(
                    f"job {case.name} was redriven before, as {format_id(case.successor)} of {version.name}: "
                    "a job is redriven once, and then that one may be",
                    redriven_as=format_id(case.successor),
                )


class _Case:
    """One dead job on its way. Owned by the call."""

    def __init__(self, name: str, number: int | None) -> None:
        self.name = name
        self.number = number
        self.view: JobView | None = None
        self.successor: int | None = None
        self.model: str | None = None
        self.already = False
        self.error: BatchyardError | None = None

    @property
    def is_open(self) -> bool:
        return self.error is None and self.successor is None

    def told(self) -> Redriven:
        error = self.error
        return Redriven(
            id=self.name,
            died_of=None if self.view is None or not self.view.state.is_dead else self.view.error,
            redriven_as=None if self.successor is None else format_id(self.successor),
            model=self.model,
            already=self.already,
            refused=None if error is None else ErrorInfo(error.code, error.message, retryable=error.retryable),
        )


def advance(steps: Steps[T], outcomes: Sequence[Outcome] | None) -> tuple[Sequence[Submission], T | None]:
    """What is to be committed next, or nothing and what it came to. `outcomes`: None at first."""
    try:
        return (next(steps) if outcomes is None else steps.send(outcomes)), None
    except StopIteration as end:
        return (), end.value


def perform(steps: Steps[T], commit: Callable[[Sequence[Submission]], Sequence[Outcome]]) -> T:
    """All of it, committed by one who may block."""
    submissions, done = advance(steps, None)
    while submissions:
        submissions, done = advance(steps, commit(submissions))
    assert done is not None
    return done


def unix_ms(moment: datetime | None) -> int | None:
    return None if moment is None else round(moment.timestamp() * 1000)


def read_moment(text: str | None, *, name: str) -> int | None:
    """A time of the query in Unix milliseconds."""
    if text is None:
        return None
    try:
        return unix_ms(msgspec.convert(text, Moment))
    except msgspec.ValidationError as error:
        raise InvalidRequest(f'{name} is "{text[:40]}"; it must be an RFC 3339 time with an offset') from error


def _gone(case: _Case) -> Gone:
    return Gone(f"job {case.name} is no longer kept, and its input with it: submit it anew")
