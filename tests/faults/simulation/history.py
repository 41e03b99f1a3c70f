"""Every change of a job's row, recorded by triggers that the simulation alone installs, and what each must obey."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from batchyard.blame import CRASH_LIMIT
from batchyard.jobs import TRANSITIONS, State

_COLUMNS = ("state", "attempt", "owner", "failures", "crashes", "preemptions", "cancel_requested")
_PAIRS = ", ".join(f"old.{column}, new.{column}" for column in _COLUMNS)
_CHANGED = " OR ".join(f"old.{column} IS NOT new.{column}" for column in _COLUMNS)
INSTALL = f"""
CREATE TEMP TABLE history (n INTEGER PRIMARY KEY, job_id, max_failures, deadline,
    {", ".join(f"{column}_was, {column}" for column in _COLUMNS)});
CREATE TEMP TRIGGER record_change AFTER UPDATE ON main.jobs WHEN {_CHANGED}
    BEGIN INSERT INTO history VALUES (NULL, new.id, new.max_failures, new.deadline, {_PAIRS}); END;
CREATE TEMP TABLE served (job_id PRIMARY KEY);
CREATE TEMP TRIGGER record_serving AFTER UPDATE OF computed_by ON main.job_results
    BEGIN INSERT INTO served VALUES (new.job_id); END;
CREATE TEMP TRIGGER record_deletion AFTER DELETE ON main.jobs WHEN old.state < {int(State.SUCCEEDED)}
    BEGIN SELECT RAISE(ABORT, 'a job was deleted before its end'); END;
"""


class Change(NamedTuple):
    """One row before and after one update."""

    n: int
    job_id: int
    max_failures: int
    deadline: int | None
    state_was: int
    state: int
    attempt_was: int
    attempt: int
    owner_was: int | None
    owner: int | None
    failures_was: int
    failures: int
    crashes_was: int
    crashes: int
    preemptions_was: int
    preemptions: int
    cancel_requested_was: int
    cancel_requested: int

    def __str__(self) -> str:
        attempt = f"attempt {self.attempt_was} -> {self.attempt}, owner {self.owner_was} -> {self.owner}"
        return f"{self.n}: job {self.job_id}: {State(self.state_was).word} -> {State(self.state).word}, {attempt}"


class History:
    """Reads what the triggers recorded and checks each change once."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        raw.executescript(INSTALL)
        self._seen = 0
        self.succeeded: dict[int, Change] = {}
        self.cancelled = 0
        """Jobs, while they ran."""
        self.claims: dict[int, int] = {}
        """Job → claims so far."""
        self._claims_held: dict[int, tuple[int, int]] | None = None

    @contextmanager
    def writing(self, claims: dict[int, tuple[int, int]]) -> Iterator[None]:
        """A consumer writes what became of claims, job → (owner, attempt): nothing else may move meanwhile."""
        self.check()
        self._claims_held = claims
        try:
            yield
        finally:
            self.check()
            self._claims_held = None

    def check(self) -> None:
        for row in self._raw.execute("SELECT * FROM history WHERE n > ? ORDER BY n", (self._seen,)).fetchall():
            change = Change(*row)
            self._seen = change.n
            try:
                self._check(change)
            except AssertionError as fault:
                raise AssertionError(f"{fault}\n{self.of(change.job_id)}") from fault

    def served(self) -> set[int]:
        """Jobs that had their result from another, once each."""
        return {job_id for (job_id,) in self._raw.execute("SELECT job_id FROM served").fetchall()}

    def _follows(self, change: Change) -> bool:
        """Whether a job waits because another goes first."""
        follower = "SELECT 1 FROM followers WHERE job_id = ? AND attempt = ?"
        return self._raw.execute(follower, (change.job_id, change.attempt)).fetchone() is not None

    def of(self, job_id: int) -> str:
        """All that happened to one job, for people."""
        rows = self._raw.execute("SELECT * FROM history WHERE job_id = ? ORDER BY n", (job_id,)).fetchall()
        return "\n".join(str(Change(*row)) for row in rows)

    def _check(self, change: Change) -> None:
        was, state = State(change.state_was), State(change.state)
        assert not was.is_terminal, "a terminal state is absorbing"
        assert was is state or (was, state) in TRANSITIONS, "no such transition"
        assert not (change.cancel_requested_was and was is not state) or state is State.CANCELLED, (
            "a job whose cancellation was asked for did something else"
        )
        self._check_fence(change, was, state)
        self._check_budgets(change, was, state)
        self.cancelled += (was, state) == (State.RUNNING, State.CANCELLED)
        if state is State.SUCCEEDED:
            self.succeeded[change.job_id] = change

    def _check_fence(self, change: Change, was: State, state: State) -> None:
        if (was, state) == (State.QUEUED, State.RUNNING):
            self.claims[change.job_id] = self.claims.get(change.job_id, 0) + 1
            assert change.attempt == change.attempt_was + 1 == self.claims[change.job_id], "a claim is one attempt"
            return
        assert (change.attempt, change.owner) == (change.attempt_was, change.owner_was), "claims alone change these"
        if self._claims_held is not None:
            held = self._claims_held.get(change.job_id)
            assert held == (change.owner, change.attempt), f"written by a claim that is not its last: {held}"

    def _check_budgets(self, change: Change, was: State, state: State) -> None:
        failed, crashed, preempted = (
            change.failures - change.failures_was,
            change.crashes - change.crashes_was,
            change.preemptions - change.preemptions_was,
        )
        ended = was is State.RUNNING and state is State.FAILED
        may_fail = ended or (was is State.RUNNING and state is State.WAITING and not self._follows(change))
        assert failed in ((0, 1) if ended else (int(may_fail),)), "a failure is charged for a failure alone"
        assert crashed == 0 or (crashed == 1 and was is State.RUNNING), "a crash is charged once"
        assert preempted == 0 or (preempted, was, state) == (1, State.RUNNING, State.QUEUED), "charged once"
        assert failed + crashed + preempted <= 1, "one end of an attempt is charged to one budget"
        assert change.failures <= change.max_failures
        assert state is not State.WAITING or change.failures < change.max_failures, "its budget is used up"
        if ended and not failed:
            assert change.crashes >= CRASH_LIMIT, "failed without a failure"
