"""Each rule of the checker finds nothing in a good history, and something in one with a single thing changed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from batchyard.jobs import State
from tests.faults.checker import RULES, check
from tests.faults.history import (
    Call,
    Calm,
    Death,
    Ended,
    Fault,
    History,
    Line,
    Row,
    Seen,
    Setting,
    Sums,
    Tickets,
    Transition,
    load,
)
from tests.faults.model import answer
from tests.faults.recovery import Recovery, percentile, recoveries

OWNER, OTHER = 77, 78
LEASE_MS = 3000
Change = Callable[[Any], Any]


def moved(seq: int, job: int, came: State | None, went: State | None, attempt: int, **more: Any) -> Transition:
    claimed = went is State.RUNNING
    given: dict[str, Any] = {
        "at_ms": 1000 + 10 * seq,
        "attempt_before": attempt - claimed,
        "attempt": attempt,
        "owner": None if attempt == 0 else OWNER,
        "owner_before": None if attempt - claimed == 0 else OWNER,
        "owner_state": "ready",
        "owner_lease_ms": 1000 + 10 * seq + LEASE_MS,
        "started_ms": 1000 + 10 * seq,
    }
    return Transition(seq=seq, job=job, came=came, went=went, **{**given, **more})


def row(job: int, token: str, state: State, attempt: int, **more: Any) -> Row:
    won = {"won_attempt": attempt, "won_by": OWNER} if state in {State.SUCCEEDED, State.FAILED} else {}
    given: dict[str, Any] = {"tenant": "ants", "failures": 0, "max_failures": 3, "crashes": 0, "owner": OWNER, **won}
    if state is State.SUCCEEDED:
        given["value"] = answer(token)
    return Row(id=job, token=token, state=state, attempt=attempt, **{**given, **more})


def call(did: str, began_ms: int, **more: Any) -> Call:
    given: dict[str, Any] = {"tenant": "ants", "outcome": "ok", "status": 200, "ended_ms": began_ms + 5}
    return Call(did=did, began_ms=began_ms, **{**given, **more})  # type: ignore[arg-type]


def good() -> History:
    """Six jobs: one succeeds at once, one after its consumer died, one fails for good, one is cancelled, one expires,
    and one came of a call without an answer. Then a fault, and one more."""
    queued, running, waiting = State.QUEUED, State.RUNNING, State.WAITING
    history = History(setting=Setting(seed=1, lease_ms=LEASE_MS, recovery_ms=5000))
    lines: Sequence[Line] = [
        call("submit", 990, key="a", tokens=("echo-1", "echo-2"), ids=(1, 2)),
        call("chunk", 991, key="b", tokens=("busy-3",), ids=(3,)),
        call("submit", 992, key="c", tokens=("echo-4",), ids=(4,)),
        call("submit", 993, key="d", tokens=("echo-5",), ids=(5,)),
        call("submit", 994, key="e", tokens=("echo-6",), outcome="unknown", status=0),
        call("submit", 995, key="g", tokens=("echo-8",), outcome="fail", status=429),
        call("poll", 1100, ids=(1,), seen={1: Seen("succeeded", answer("echo-1"))}),
        call("cancel", 1110, ids=(4,), seen={4: Seen("cancelled")}),
        call("trespass", 1120, tenant="bees", outcome="fail", status=404, ids=(1,)),
        call("stream", 1130, ids=(3,), tokens=("busy-3",)),
        moved(1, 1, None, queued, 0),
        moved(2, 1, queued, running, 1),
        moved(3, 1, running, State.SUCCEEDED, 1),
        moved(4, 2, None, queued, 0),
        moved(5, 2, queued, running, 1),
        moved(6, 2, running, queued, 1, owner_state="dead"),
        moved(7, 2, queued, running, 2, owner=OWNER),
        moved(8, 2, running, State.SUCCEEDED, 2),
        moved(9, 3, None, queued, 0),
        moved(10, 3, queued, running, 1),
        moved(11, 3, running, waiting, 1, failures=1),
        moved(12, 3, waiting, queued, 1, failures_before=1, failures=1),
        moved(13, 3, queued, running, 2, failures_before=1, failures=1),
        moved(14, 3, running, State.FAILED, 2, failures_before=1, failures=2),
        moved(15, 4, None, queued, 0),
        moved(16, 4, queued, State.CANCELLED, 0),
        moved(17, 5, None, queued, 0, deadline_ms=1500),
        moved(18, 5, queued, running, 1, deadline_ms=1500),
        moved(19, 5, running, queued, 1, preemptions=1, deadline_ms=1500),
        moved(20, 5, queued, State.EXPIRED, 1, preemptions_before=1, preemptions=1, deadline_ms=1500, at_ms=1600),
        moved(21, 6, None, queued, 0),
        moved(22, 6, queued, running, 1),
        moved(23, 6, running, State.SUCCEEDED, 1),
        Ended(at_ms=1055, pid=5, role="worker"),
        Death(at_ms=1058, owner=OTHER, pid=5, lease_until_ms=9000),
        Death(at_ms=1059, owner=OTHER, pid=6, lease_until_ms=1050),
        Fault(name="consumer_killed", began_ms=1052, healed_ms=1052, victims=(OWNER,)),
        call("submit", 2000, key="f", tokens=("echo-7",), ids=(7,)),
        moved(30, 7, None, queued, 0, at_ms=2003),
        moved(31, 7, queued, running, 1, at_ms=2010, started_ms=2010, owner_lease_ms=5000),
        moved(32, 7, running, State.SUCCEEDED, 1, at_ms=2020),
        Tickets(published=24, kept=24),
        Calm(ticketed=110, claimed=100),
        row(1, "echo-1", State.SUCCEEDED, 1),
        row(2, "echo-2", State.SUCCEEDED, 2),
        row(3, "busy-3", State.FAILED, 2, failures=2, max_failures=2, error="model_busy"),
        row(4, "echo-4", State.CANCELLED, 0, owner=None),
        row(5, "echo-5", State.EXPIRED, 1, deadline_ms=1500, finished_ms=1600),
        row(6, "echo-6", State.SUCCEEDED, 1),
        row(7, "echo-7", State.SUCCEEDED, 1),
        Sums(tenant="ants", backlog={"succeeded": 4, "failed": 1, "cancelled": 1, "expired": 1}, used_jobs=4),
        Sums(tenant="bees", backlog={}, used_jobs=0),
    ]
    history.add(lines)
    return history


def change(name: str, place: int, **values: Any) -> Change:
    """A copy of one line of a list of the history with other values."""

    def apply(history: History) -> None:
        lines = getattr(history, name)
        lines[place] = msgspec.structs.replace(lines[place], **values)

    return apply


def take(name: str, place: int) -> Change:
    """One line less."""
    return lambda history: getattr(history, name).pop(place)


def put(*lines: Line) -> Change:
    return lambda history: history.add(lines)


def place_of(seq: int) -> int:
    return next(place for place, one in enumerate(good().transitions) if one.seq == seq)


def transition(seq: int, **values: Any) -> Change:
    return change("transitions", place_of(seq), **values)


BREAKS: list[tuple[str, Change]] = [
    ("accepted_jobs_end", change("rows", 1, state=State.RUNNING)),
    ("accepted_jobs_end", take("rows", 0)),
    ("inputs_become_one_job", put(row(9, "echo-1", State.SUCCEEDED, 1))),
    ("inputs_become_one_job", change("rows", 0, token="echo-2")),
    ("inputs_become_one_job", put(call("submit", 996, key="a", tokens=("echo-1", "echo-2"), ids=(8, 9)))),
    ("inputs_become_one_job", put(row(8, "echo-8", State.SUCCEEDED, 1))),
    ("inputs_become_one_job", change("calls", 4, tokens=("echo-6", "echo-9"))),
    ("states_follow", put(moved(24, 6, State.SUCCEEDED, State.SUCCEEDED, 1))),
    ("states_follow", put(moved(24, 6, State.SUCCEEDED, None, 1))),
    ("states_follow", take("transitions", place_of(6))),
    ("states_follow", transition(16, went=State.FAILED)),
    ("states_follow", change("rows", 5, state=State.CANCELLED)),
    ("results_are_own", change("rows", 1, value=answer("echo-1"))),
    ("results_are_own", change("calls", 6, seen={1: Seen("succeeded", answer("echo-2"))})),
    ("results_are_own", change("calls", 6, seen={1: Seen("cancelled")})),
    ("results_are_own", change("calls", 6, seen={99: Seen("queued")})),
    ("streams_are_whole", change("calls", 9, ids=(3, 3))),
    ("streams_are_whole", change("calls", 9, tokens=("busy-3", "echo-9"))),
    ("winner_is_latest", change("rows", 1, won_attempt=1)),
    ("winner_is_latest", change("rows", 1, won_by=OTHER)),
    ("attempts_count_claims", transition(7, attempt=1)),
    ("attempts_count_claims", transition(6, attempt=2)),
    ("attempts_count_claims", transition(3, owner=OTHER)),
    ("owners_are_alive", transition(2, owner_state="dead")),
    ("owners_are_alive", transition(2, owner_lease_ms=10)),
    ("owners_are_alive", change("deaths", 1, lease_until_ms=1060)),
    ("owners_are_alive", change("ended", 0, at_ms=9000)),
    ("budgets_are_obeyed", transition(19, failures=1, preemptions=1)),
    ("budgets_are_obeyed", transition(19, preemptions=2)),
    ("budgets_are_obeyed", transition(7, crashes=1)),
    ("budgets_are_obeyed", transition(11, failures=0)),
    ("budgets_are_obeyed", change("rows", 2, failures=3)),
    ("ends_have_reasons", change("rows", 2, failures=1)),
    ("ends_have_reasons", change("rows", 2, error="crash_loop", crashes=2)),
    ("ends_have_reasons", change("rows", 0, state=State.FAILED, error="model_error")),
    ("ends_have_reasons", change("rows", 4, finished_ms=1400)),
    ("ends_have_reasons", change("calls", 7, ids=(5,))),
    ("cancelled_never_succeeds", transition(3, cancel_requested=True)),
    ("cancelled_never_succeeds", change("calls", 7, seen={1: Seen("cancelled")})),
    ("deadlines_hold", transition(18, started_ms=1500)),
    ("deadlines_hold", transition(18, at_ms=2600)),
    ("success_is_billed_once", change("sums", 0, used_jobs=5)),
    ("tenants_are_apart", change("calls", 8, outcome="ok", status=200)),
    ("tenants_are_apart", change("calls", 6, tenant="bees")),
    ("sums_are_right", change("sums", 0, backlog={"succeeded": 5, "failed": 1, "cancelled": 1, "expired": 1})),
    ("sums_are_right", change("sums", 1, wrong_lines=2)),
    ("sums_are_right", take("rows", 4)),
    ("sums_are_right", change("calls", 0, tokens=("echo-1", "echo-9"))),
    ("work_resumes", change("faults", 0, victims=(OWNER,), began_ms=1031, healed_ms=3000)),
    ("work_resumes", change("calls", 10, ended_ms=7000)),
    ("claims_come_before_acknowledgements", change("tickets", 0, kept=23)),
    ("tickets_are_few", change("calms", 0, ticketed=111)),
]


def test_a_good_history_is_clean() -> None:
    assert check(good()) == []


@pytest.mark.parametrize(("rule", "change_it"), BREAKS, ids=[f"{n}-{rule}" for n, (rule, _) in enumerate(BREAKS)])
def test_each_rule_finds_what_breaks_it(rule: str, change_it: Change) -> None:
    history = good()
    change_it(history)
    assert rule in {anomaly.rule for anomaly in check(history)}


def test_no_rule_is_without_a_history_that_breaks_it() -> None:
    assert {rule for rule, _ in BREAKS} == {rule.__name__ for rule in RULES}


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    history = good()
    digest = history.save(tmp_path / "history")
    assert load(tmp_path / "history") == history
    assert load(tmp_path / "history").save(tmp_path / "again") == digest
    history.faults.clear()
    assert history.save(tmp_path / "other") != digest


def test_the_history_of_a_job_is_in_order_and_of_that_job_alone() -> None:
    kinds = [type(line).__name__ for line in good().about(2)]
    assert kinds == ["Call", *["Transition"] * 2, "Fault", *["Transition"] * 3, "Row"]
    [submit, *_] = good().about(2)
    assert isinstance(submit, Call)
    assert (submit.ids, submit.tokens) == ((2,), ("echo-2",))


def test_recovery_takes_as_long_as_the_slowest_of_what_must_go_on() -> None:
    history = good()
    # The submission of job 7 is answered at 2005; job 2 was claimed again before, and given back at 1060.
    assert recoveries(history) == [Recovery("consumer_killed", 2005 - 1052, 2005 - 1052)]
    change("calls", 10, ended_ms=2500)(history)
    assert recoveries(history) == [Recovery("consumer_killed", 2500 - 1052, 2500 - 1052)]
    transition(6, at_ms=4000)(history)
    assert recoveries(history) == [Recovery("consumer_killed", 4000 - 1052, 4000 - 1052)]
    change("faults", 0, healed_ms=2400)(history)
    assert recoveries(history) == [Recovery("consumer_killed", None, None)]


def test_what_other_faults_added_is_told_apart() -> None:
    history = good()
    history.add([Fault(name="broker_paused", began_ms=1500, healed_ms=1900)])
    first, second = recoveries(history)
    assert (first.ms, first.undisturbed_ms, first.was_overtaken) == (2005 - 1052, 2005 - 1900, True)
    assert (second.ms, second.undisturbed_ms, second.was_overtaken) == (110, 110, False)


def test_percentiles_are_of_the_values() -> None:
    assert [percentile([30, 10, 20, 40], share) for share in (0.0, 0.5, 0.99)] == [10, 20, 40]
    assert percentile([], 0.5) == 0
