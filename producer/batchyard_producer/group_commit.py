"""Group commit: one thread commits whatever gathered while the last commit ran. No timer."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from batchyard.errors import BatchyardError, ServerError, Unavailable
from batchyard.jobs import Accepted, Submission
from batchyard.telemetry import log_event

MAX_GROUP_JOBS = 20_000
MAX_GROUP_BYTES = 32 * 1024 * 1024
MAX_WAITING_JOBS = 200_000
MAX_WAITING_BYTES = 512 * 1024 * 1024

log = logging.getLogger(__name__)

Outcome = Accepted | Exception
AfterCommit = Callable[[Sequence[Submission], Sequence[Outcome], float], None]
"""Called on the writer's thread after every commit, with its seconds; must not block for long."""


class SubmitStore(Protocol):
    """The part of the job store that is used here."""

    def submit(self, submissions: Sequence[Submission]) -> list[Outcome]: ...


class _Member:
    """One caller's submission on its way."""

    __slots__ = ("future", "jobs", "size", "submission")

    def __init__(self, submission: Submission, future: asyncio.Future[Accepted]) -> None:
        self.submission = submission
        self.future = future
        self.jobs = len(submission.inputs)
        self.size = sum(map(len, submission.inputs))


class GroupCommit:
    """Gathers submissions of one event loop and commits them in groups on a thread of its own.

    What waits is bounded; the counters of it belong to the event loop.
    """

    def __init__(
        self,
        store: SubmitStore,
        *,
        after_commit: AfterCommit | None = None,
        max_waiting_jobs: int = MAX_WAITING_JOBS,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        self._store = store
        self._after_commit = after_commit
        self._max_waiting_jobs = max_waiting_jobs
        self._max_waiting_bytes = max_waiting_bytes
        self._waiting_jobs = 0
        self._waiting_bytes = 0
        self._members: deque[_Member] = deque()
        self._wake = threading.Condition()
        self._is_idle = False
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="batchyard-commit", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the writer; `submit` is then called from this loop."""
        self._loop = loop
        self._thread.start()

    def close(self) -> None:
        """Commit what was handed in, then stop; returns when the writer is done. Not for the loop's own thread."""
        with self._wake:
            self._is_closed = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, submission: Submission) -> asyncio.Future[Accepted]:
        """Hand in a submission; the future resolves once it is committed, or to the error in its place.

        Unavailable at once where too much waits already, or the process is shutting down.
        """
        assert self._loop is not None, "start() comes first"
        if self._is_closed:
            raise Unavailable("the server is shutting down", retry_after_seconds=1)
        member = _Member(submission, self._loop.create_future())
        if self._waiting_jobs and (
            self._waiting_jobs + member.jobs > self._max_waiting_jobs
            or self._waiting_bytes + member.size > self._max_waiting_bytes
        ):
            raise Unavailable(f"{self._waiting_jobs} jobs wait for the database already", retry_after_seconds=1)
        self._waiting_jobs += member.jobs
        self._waiting_bytes += member.size
        self._members.append(member)
        # The writer looks at the members after it said that it is idle, so none is overlooked.
        if self._is_idle:
            with self._wake:
                self._wake.notify()
        return member.future

    def _run(self) -> None:
        while True:
            group = self._gather()
            if not group:
                return
            submissions = [member.submission for member in group]
            began = time.perf_counter()
            outcomes = self._commit(submissions)
            seconds = time.perf_counter() - began
            self._resolve(group, outcomes)
            if self._after_commit is not None:
                try:
                    self._after_commit(submissions, outcomes, seconds)
                except Exception as fault:  # noqa: BLE001  the writer must outlive any fault of what comes after
                    log_event(log, "after_commit_failed", level=logging.ERROR, error=fault)

    def _gather(self) -> list[_Member]:
        """The next members within the bounds of a group, at least one; none when closed and done."""
        members = self._members
        if not members:
            with self._wake:
                self._is_idle = True
                while not members and not self._is_closed:
                    self._wake.wait()
                self._is_idle = False
        group: list[_Member] = []
        jobs = size = 0
        while members and (
            not group or (jobs + members[0].jobs <= MAX_GROUP_JOBS and size + members[0].size <= MAX_GROUP_BYTES)
        ):
            member = members.popleft()
            group.append(member)
            jobs += member.jobs
            size += member.size
        return group

    def _commit(self, submissions: list[Submission]) -> list[Outcome]:
        """Commit a group. A fault that names nobody is tried again singly, so that it fails its own caller alone."""
        try:
            return self._store.submit(submissions)
        except Unavailable as error:
            return [_unavailable(error) for _ in submissions]
        except Exception as error:  # noqa: BLE001  logged, and told to its own caller alone
            if len(submissions) == 1:
                return [_refusal(error)]
            log_event(log, "group_commit_failed", level=logging.WARNING, submissions=len(submissions), error=error)
        return [outcome for submission in submissions for outcome in self._commit([submission])]

    def _resolve(self, group: list[_Member], outcomes: list[Outcome]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._tell, group, outcomes)
        except RuntimeError:  # the loop is closed: nobody waits any more
            log_event(log, "commit_unheard", submissions=len(group))

    def _tell(self, group: list[_Member], outcomes: list[Outcome]) -> None:
        """On the loop: resolve the futures of one commit."""
        for member, outcome in zip(group, outcomes, strict=True):
            self._waiting_jobs -= member.jobs
            self._waiting_bytes -= member.size
            if member.future.cancelled():
                continue
            if isinstance(outcome, Exception):
                member.future.set_exception(outcome)
            else:
                member.future.set_result(outcome)


def _unavailable(error: Unavailable) -> Unavailable:
    """One per caller: an exception that is raised in several places gathers their tracebacks."""
    return type(error)(error.message, **{"retry_after_seconds": 1, **error.details})


def _refusal(error: Exception) -> Exception:
    if isinstance(error, BatchyardError):
        return error
    log_event(log, "submission_failed", level=logging.ERROR, error=error)
    return ServerError("the jobs could not be stored; the server's log has the details")
