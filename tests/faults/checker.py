"""What a history must look like when nothing was lost and nothing happened twice. Pure.

Each rule is a function from the history to the anomalies it finds; `RULES` lists them all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

from batchyard.blame import CRASH_LIMIT, CRASH_LOOP
from batchyard.jobs import TRANSITIONS, State
from tests.faults.history import Call, History, Row, Transition
from tests.faults.model import answer, deed
from tests.faults.recovery import recoveries

GONE = frozenset({"gone", "dead"})
CLOCK_MS = 1000
"""A statement reads the clock up to this long before its trigger does; an end is noticed as late."""
TICKETS_PER_CLAIM = 1.1
"""Ids ticketed for each job claimed, beyond the faults."""
MADE = frozenset({"submit", "chunk", "redrive"})


class Anomaly(NamedTuple):
    """Something that must not be. `job` 0: of no single job."""

    rule: str
    job: int
    what: str


class Facts:
    """A history, indexed once for all rules."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.rows = {row.id: row for row in history.rows}

    @cached_property
    def chains(self) -> dict[int, list[Transition]]:
        chains: dict[int, list[Transition]] = defaultdict(list)
        for change in sorted(self.history.transitions, key=lambda change: change.seq):
            chains[change.job].append(change)
        return chains

    @cached_property
    def claims(self) -> dict[int, list[Transition]]:
        return {job: [change for change in chain if is_claim(change)] for job, chain in self.chains.items()}

    @cached_property
    def jobs_of(self) -> dict[str, list[int]]:
        """Token → the jobs that came of it, redriven ones apart."""
        made: dict[str, list[int]] = defaultdict(list)
        for row in self.history.rows:
            if row.redrive_of is None:
                made[row.token].append(row.id)
        return made

    def calls(self, *did: str, outcome: str = "ok") -> Iterator[Call]:
        return (call for call in self.history.calls if call.did in did and call.outcome == outcome)


Found = Iterator[tuple[int, str]]


def is_claim(change: Transition) -> bool:
    return change.went is State.RUNNING and change.came is not State.RUNNING


def accepted_jobs_end(facts: Facts) -> Found:
    """A job whose submission was answered 2xx has reached a terminal state."""
    for call in facts.calls(*MADE):
        for job in call.ids:
            row = facts.rows.get(job)
            if row is None:
                yield job, "was accepted and does not exist"
            elif not row.state.is_terminal:
                yield job, f"was accepted and is still {row.state.word}"


def inputs_become_one_job(facts: Facts) -> Found:
    """Each input accepted is one job, in order; of a call without an answer all are or none; refused, none."""
    accepted: dict[tuple[str, str], tuple[int, ...]] = {}
    for call in facts.calls("submit", "chunk"):
        for job, token in zip(call.ids, call.tokens, strict=True):
            if job in facts.rows and facts.rows[job].token != token:
                yield job, f"was made of {facts.rows[job].token} and answered for {token}"
        known = accepted.setdefault((call.tenant, call.key or str(call.ids)), call.ids)
        if known != call.ids:
            yield call.ids[0], f"answered for key {call.key} where an earlier answer was {known[0]:x}"
    kept = {token for ids in accepted.values() for job in ids if job in facts.rows for token in [facts.rows[job].token]}
    unknown = {(call.tenant, call.key) for call in facts.calls("submit", "chunk", outcome="unknown")}
    for token, jobs in facts.jobs_of.items():
        if len(jobs) > 1:
            yield jobs[1], f"is job {len(jobs)} of the one input {token}"
    for call in facts.history.calls:
        made = sum(token in facts.jobs_of for token in call.tokens)
        if call.outcome == "unknown" and 0 < made < len(call.tokens):
            yield 0, f"a call without an answer made {made} of {len(call.tokens)} jobs, from {call.tokens[0]}"
        refused = call.outcome == "fail" and (call.tenant, call.key) not in unknown
        if refused and any(token in facts.jobs_of and token not in kept for token in call.tokens):
            yield 0, f"a refused call ({call.status}) made jobs, from {call.tokens[0]}"


def states_follow(facts: Facts) -> Found:
    """Every change is one of the table's, begins where the last one ended, and the terminal one is the last."""
    for job, chain in facts.chains.items():
        state: State | None = None
        for change in chain:
            if change.came != state:
                yield job, f"left {_word(change.came)} when it was {_word(state)}"
            if state is not None and state.is_terminal:
                yield job, f"was touched again after it had {state.word}"
            elif change.went is None or (change.came, change.went) not in TRANSITIONS:
                yield job, f"went from {_word(change.came)} to {_word(change.went)}"
            state = change.went
        row = facts.rows.get(job)
        if row is not None and row.state is not state:
            yield job, f"is {row.state.word}; its last change made it {_word(state)}"


def results_are_own(facts: Facts) -> Found:
    """A success has the result of its own input, at the end and in every poll; what was seen to end stays so."""
    for row in facts.history.rows:
        if row.state is State.SUCCEEDED and row.value != answer(row.token):
            yield row.id, f"has the result {row.value!r} for {row.token}"
    for call in facts.history.calls:
        for job, seen in call.seen.items():
            there = facts.rows.get(job)
            if there is None:
                yield job, f"was seen {seen.state} and does not exist"
            elif State[seen.state.upper()].is_terminal and seen.state != there.state.word:
                yield job, f"was seen {seen.state} and is {there.state.word}"
            elif seen.state == "succeeded" and seen.value != answer(there.token):
                yield job, f"was seen with the result {seen.value!r} for {there.token}"


def streams_are_whole(facts: Facts) -> Found:
    """The results of a finished bulk name each of its jobs once."""
    for call in facts.calls("stream"):
        for job, times in Counter(call.ids).items():
            if times != 1:
                yield job, f"came {times} times in the results of its bulk"
        if call.ids and set(call.tokens) != {facts.rows[job].token for job in call.ids if job in facts.rows}:
            yield call.ids[0], f"its bulk has {len(call.tokens)} jobs and {len(call.ids)} results"


def winner_is_latest(facts: Facts) -> Found:
    """The attempt that won is the latest claim, by the consumer that made it."""
    for row in facts.history.rows:
        if row.state not in {State.SUCCEEDED, State.FAILED} or not facts.claims.get(row.id):
            continue
        last = facts.claims[row.id][-1]
        if (row.won_attempt, row.won_by) != (last.attempt, last.owner):
            won = f"attempt {row.won_attempt} of {row.won_by}"
            yield row.id, f"{won} won; the latest claim is {last.attempt} of {last.owner}"


def attempts_count_claims(facts: Facts) -> Found:
    """A claim raises the attempt by one and names the owner; nothing else touches either."""
    for job, chain in facts.chains.items():
        for change in chain:
            if change.came is None or change.went is None:
                continue
            if change.attempt != change.attempt_before + is_claim(change):
                yield job, f"{_how(change)}: the attempt went from {change.attempt_before} to {change.attempt}"
            if not is_claim(change) and change.owner != change.owner_before:
                yield job, f"{_how(change)}: the owner went from {change.owner_before} to {change.owner}"


def owners_are_alive(facts: Facts) -> Found:
    """A consumer claims within its lease, and is declared dead once that is over or its process is: so no two hold a
    job at a time."""
    for job, claims in facts.claims.items():
        for change in claims:
            lease_ms = change.owner_lease_ms or 0
            if change.owner_state is None or change.owner_state in GONE or lease_ms < change.at_ms - CLOCK_MS:
                yield job, f"was claimed by {change.owner}, which was {change.owner_state or 'nobody'}"
    ended = {end.pid: end.at_ms for end in facts.history.ended}
    for death in facts.history.deaths:
        over = death.lease_until_ms <= death.at_ms or ended.get(death.pid, death.at_ms * 2) <= death.at_ms + CLOCK_MS
        if not over:
            left = death.lease_until_ms - death.at_ms
            yield 0, f"consumer {death.owner} was declared dead {left} ms before its lease was over"


def budgets_are_obeyed(facts: Facts) -> Found:
    """Failures, crashes and preemptions are counted where they happen, one at a time; failures stay in their budget."""
    for job, chain in facts.chains.items():
        for change in chain:
            if change.came is None or change.went is None:
                continue
            failed = change.came is State.RUNNING and change.went in {State.WAITING, State.FAILED}
            back = change.came is State.RUNNING and change.went is State.QUEUED
            # A consumer that crashed fails its last job by the hand of the reaper, without a failure.
            crashed = change.crashes - change.crashes_before
            rises = (
                ("failures", change.failures - change.failures_before, {1, 1 - crashed} if failed else {0}),
                ("crashes", crashed, {0, 1} if back or failed else {0}),
                ("preemptions", change.preemptions - change.preemptions_before, {0, 1} if back else {0}),
            )
            for name, rise, allowed in rises:
                if rise not in allowed:
                    yield job, f"{_how(change)}: its {name} rose by {rise}"
    for row in facts.history.rows:
        if row.failures > row.max_failures:
            yield row.id, f"failed {row.failures} times of {row.max_failures}"


def ends_have_reasons(facts: Facts) -> Found:
    """A job ends as its input, its deadline and its callers say, and in no other way."""
    asked = {job for call in facts.history.calls if call.did == "cancel" and call.outcome != "fail" for job in call.ids}
    for row in facts.history.rows:
        if not row.state.is_terminal or _is_due_end(row, asked=row.id in asked):
            continue
        yield row.id, f"{row.token} ended as {row.state.word} {row.error} after {row.failures} failures".rstrip()


def _is_due_end(row: Row, *, asked: bool) -> bool:
    wants = deed(row.token)
    match row.state:
        case State.SUCCEEDED:
            return wants in {"echo", "slow"}
        case State.CANCELLED:
            return asked
        case State.EXPIRED:
            return row.deadline_ms is not None and (row.finished_ms or 0) >= row.deadline_ms
        case _ if row.error == CRASH_LOOP:
            return row.crashes >= CRASH_LIMIT
        case _ if wants == "busy":
            return row.error == "model_busy" and row.failures == row.max_failures
        case _:
            return wants == "invalid" and row.error == "invalid_input"


def cancelled_never_succeeds(facts: Facts) -> Found:
    """What was answered `cancelled` stays it, and a request to cancel is honoured whatever ends the job."""
    for job, chain in facts.chains.items():
        for change in chain:
            if change.went is State.SUCCEEDED and change.cancel_requested and change.came is State.RUNNING:
                yield job, "succeeded although its cancellation had been asked for"
    for call in facts.calls("cancel"):
        for job, seen in call.seen.items():
            if seen.state == "cancelled" and job in facts.rows and facts.rows[job].state is not State.CANCELLED:
                yield job, f"was answered cancelled and is {facts.rows[job].state.word}"


def deadlines_hold(facts: Facts) -> Found:
    """No claim past a deadline."""
    for job, claims in facts.claims.items():
        for change in claims:
            if change.deadline_ms is None:
                continue
            if (change.started_ms or 0) >= change.deadline_ms or change.at_ms > change.deadline_ms + CLOCK_MS:
                yield job, f"was claimed {change.at_ms - change.deadline_ms} ms past its deadline"


def success_is_billed_once(facts: Facts) -> Found:
    """As many jobs were used as succeeded."""
    succeeded = Counter(row.tenant for row in facts.history.rows if row.state is State.SUCCEEDED)
    for sums in facts.history.sums:
        if sums.used_jobs != succeeded[sums.tenant]:
            yield 0, f"tenant {sums.tenant} was billed {sums.used_jobs} jobs and {succeeded[sums.tenant]} succeeded"


def tenants_are_apart(facts: Facts) -> Found:
    """Nobody sees another tenant's jobs."""
    for call in facts.history.calls:
        if call.did == "trespass" and call.outcome != "unknown" and call.status not in {0, 404, 429}:
            yield call.ids[0], f"was answered {call.status} to tenant {call.tenant}, whose it is not"
        for job in call.seen:
            if job in facts.rows and facts.rows[job].tenant != call.tenant:
                yield job, f"of tenant {facts.rows[job].tenant} was shown to {call.tenant}"


def sums_are_right(facts: Facts) -> Found:
    """The ledger counts every job that exists, in the state that it is in; every job was made by a call."""
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    for row in facts.history.rows:
        counted[row.tenant][row.state.word] += 1
    for sums in facts.history.sums:
        if Counter(sums.backlog) != counted[sums.tenant]:
            yield 0, f"tenant {sums.tenant}: the ledger says {sums.backlog}, counting says {dict(counted[sums.tenant])}"
        if sums.wrong_lines:
            yield 0, f"tenant {sums.tenant}: {sums.wrong_lines} lines of the ledger are not what counting says"
    meant = {token for call in facts.history.calls for token in call.tokens}
    for token, jobs in facts.jobs_of.items():
        if token not in meant:
            yield jobs[0], f"was made of {token}, which nobody sent"


def work_resumes(facts: Facts) -> Found:
    """After every fault, and those that struck meanwhile, submissions, claims and the jobs of its victims go on within
    the time allowed."""
    for recovery in recoveries(facts.history):
        if recovery.undisturbed_ms is None:
            yield 0, f"work never went on after {recovery.name}"
        elif recovery.undisturbed_ms > facts.history.setting.recovery_ms:
            yield 0, f"work went on {recovery.undisturbed_ms} ms after {recovery.name} and what followed"


def claims_come_before_acknowledgements(facts: Facts) -> Found:
    """A ticket that could not be claimed goes back to the broker when its consumer dies."""
    for taken in facts.history.tickets:
        if taken.kept < taken.published:
            yield 0, f"{taken.published - taken.kept} of {taken.published} tickets were acknowledged without a claim"


def tickets_are_few(facts: Facts) -> Found:
    """Beyond the faults no job is ticketed over and over."""
    for calm in facts.history.calms:
        if calm.ticketed > TICKETS_PER_CLAIM * calm.claimed:
            yield 0, f"{calm.ticketed} ids were ticketed for {calm.claimed} jobs claimed"


RULES: Sequence[Callable[[Facts], Found]] = (
    accepted_jobs_end,
    inputs_become_one_job,
    states_follow,
    results_are_own,
    streams_are_whole,
    winner_is_latest,
    attempts_count_claims,
    owners_are_alive,
    budgets_are_obeyed,
    ends_have_reasons,
    cancelled_never_succeeds,
    deadlines_hold,
    success_is_billed_once,
    tenants_are_apart,
    sums_are_right,
    work_resumes,
    claims_come_before_acknowledgements,
    tickets_are_few,
)


def check(history: History) -> list[Anomaly]:
    """All that must not be, in the order of the rules."""
    facts = Facts(history)
    return [Anomaly(rule.__name__, job, what) for rule in RULES for job, what in rule(facts)]


def _word(state: State | None) -> str:
    return "nothing" if state is None else state.word


def _how(change: Transition) -> str:
    return f"from {_word(change.came)} to {_word(change.went)}"
