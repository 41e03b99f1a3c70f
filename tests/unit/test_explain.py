import pytest

from batchyard.catalog import QueueLoad
from batchyard.explain import outlook
from batchyard.jobs import Lane, State
from tests.unit.samples import NOW_MS, job_view, model_version

SERVED = QueueLoad(queue_id=1, version=model_version(), lane=Lane.FIRM, queued=20, ready=1, jobs_per_second=10.0)


@pytest.mark.parametrize(
    ("position", "message", "eta_seconds"),
    [
        (0, "next to be claimed", 0.1),
        (1, "behind about 1 job", 0.2),
        (12, "behind about 12 jobs", 1.3),
        (4000, "behind about 4000 jobs", 400.1),
        (None, "one of 20 queued jobs", None),
    ],
)
def test_a_queued_job_stands_behind_others(position: int | None, message: str, eta_seconds: float | None) -> None:
    seen = outlook(job_view(), load=SERVED, position=position, now_ms=NOW_MS)
    assert seen.waits_because is not None
    assert (seen.waits_because.code, seen.waits_because.message) == ("behind_jobs", message)
    assert seen.eta_seconds == eta_seconds


@pytest.mark.parametrize(
    ("load", "code"),
    [
        (
            QueueLoad(queue_id=1, version=model_version(paused=frozenset({Lane.FIRM})), lane=Lane.FIRM, ready=1),
            "paused",
        ),
        (QueueLoad(queue_id=1, version=model_version(load_error="no file"), lane=Lane.FIRM), "model_failed"),
        (QueueLoad(queue_id=1, version=model_version(), lane=Lane.FIRM, starting=1), "model_loading"),
        (QueueLoad(queue_id=1, version=model_version(), lane=Lane.FIRM), "no_capacity"),
        (QueueLoad(queue_id=1, version=model_version(), lane=Lane.FIRM, has_pool=False), "no_consumer"),
    ],
)
def test_why_nothing_claims_it(load: QueueLoad, code: str) -> None:
    seen = outlook(job_view(), load=load, position=3, now_ms=NOW_MS)
    assert seen.waits_because is not None
    assert seen.waits_because.code == code
    assert seen.eta_seconds is None


def test_a_cold_start_is_told_as_the_reason_with_the_time_that_it_took() -> None:
    load = QueueLoad(queue_id=1, version=model_version(load_seconds=12.34), lane=Lane.FIRM, starting=1)
    seen = outlook(job_view(), load=load, position=3, now_ms=NOW_MS)
    assert seen.waits_because is not None
    assert seen.waits_because.message.endswith("loads echo@1, which took 12.3 s the last time")


def test_a_job_of_a_paused_bulk() -> None:
    seen = outlook(job_view(is_held=True), load=SERVED, position=None, now_ms=NOW_MS)
    assert seen.waits_because is not None
    assert seen.waits_because.code == "paused"


def test_a_retry_backs_off() -> None:
    job = job_view(state=State.WAITING, failures=1, not_before_ms=NOW_MS + 2500)
    seen = outlook(job, load=SERVED, position=None, now_ms=NOW_MS)
    assert seen.waits_because is not None
    assert seen.waits_because.message == "backs off for 2.5 s after failure 1 of 3"


def test_who_lets_another_go_first_does_not_back_off() -> None:
    waiting = job_view(state=State.WAITING, is_following=True, not_before_ms=NOW_MS + 9000)
    reason = outlook(waiting, load=SERVED, position=None, now_ms=NOW_MS).waits_because
    assert reason is not None
    assert (reason.code, reason.message) == ("same_computation", "another job that computes the same goes first")


@pytest.mark.parametrize("state", [State.RUNNING, State.SUCCEEDED, State.FAILED])
def test_a_job_that_does_not_wait_needs_no_reason(state: State) -> None:
    assert outlook(job_view(state=state), load=SERVED, position=None, now_ms=NOW_MS).waits_because is None
