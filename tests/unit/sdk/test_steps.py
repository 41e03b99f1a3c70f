"""Calls as steps: what is tried again, for how long, and which error comes out."""

from typing import Any

import msgspec
import pytest

from batchyard import schemas
from batchyard.errors import (
    BatchyardError,
    ConnectionFailed,
    Gone,
    InvalidInput,
    JobCancelled,
    JobFailed,
    QueueFull,
    ServerError,
    Unavailable,
    UnknownModel,
    WaitTimeout,
)
from batchyard.sdk import calls
from batchyard.sdk.http import drive
from batchyard.sdk.steps import Patience, Pause, Request, Response, call, problem_of

REQUEST = Request(method="GET", path="/v1/models")
GOOD = Response(status=200, body=b"{}")


def problem(status: int, code: str, **more: Any) -> Response:
    body = msgspec.json.encode({"status": status, "code": code, "detail": "as told", **more})
    return Response(status=status, body=body, content_type="application/problem+json")


class Script:
    """Performs steps from a list of answers; errors among them are raised."""

    def __init__(self, *answers: Response | BatchyardError) -> None:
        self.answers = list(answers)
        self.requests: list[Request] = []
        self.pauses: list[float] = []

    def __call__(self, step: Any) -> Response | None:
        if isinstance(step, Pause):
            self.pauses.append(step.seconds)
            return None
        self.requests.append(step)
        answer = self.answers.pop(0)
        if isinstance(answer, BatchyardError):
            raise answer
        return answer


def test_a_lost_connection_is_tried_again_with_growing_pauses() -> None:
    script = Script(*[ConnectionFailed("away")] * 6, GOOD)

    assert drive(call(REQUEST, Patience(60)), script) is GOOD
    assert len(script.requests) == 7
    assert script.pauses[-1] > script.pauses[0]


def test_patience_ends() -> None:
    script = Script(*[ConnectionFailed("away")] * 100)

    with pytest.raises(ConnectionFailed, match="away"):
        drive(call(REQUEST, Patience(0.0)), script)
    assert len(script.requests) == 1


def test_patience_counts_from_the_first_failure_after_a_success() -> None:
    patience = Patience(0.4)
    assert patience.pause_after(Unavailable("away")) is not None
    patience.reset()
    assert patience.pause_after(Unavailable("away")) is not None


def test_unavailable_waits_as_long_as_the_server_asks() -> None:
    script = Script(problem(503, "unavailable", retry_after_seconds=2.5), GOOD)

    drive(call(REQUEST, Patience(60)), script)

    assert script.pauses[0] >= 2.5


def test_a_full_queue_is_the_callers_to_decide() -> None:
    full = problem(429, "queue_full", retry_after_seconds=3)

    with pytest.raises(QueueFull) as caught:
        drive(call(REQUEST, Patience(60)), Script(full))
    assert caught.value.retry_after_seconds == 3


def test_a_full_queue_is_waited_for_without_limit_where_asked() -> None:
    script = Script(*[problem(429, "queue_full", retry_after_seconds=3)] * 30, GOOD)

    assert drive(call(REQUEST, Patience(1, through_full=True)), script) is GOOD
    assert all(3 <= pause <= 3.4 for pause in script.pauses)


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (problem(404, "unknown_model"), UnknownModel),
        (problem(422, "invalid_input", pointer="/input"), InvalidInput),
        (problem(410, "gone"), Gone),
        (problem(500, "server_error"), ServerError),
        (Response(status=502, body=b"<html>bad gateway</html>"), Unavailable),
        (Response(status=500, body=b"oops"), ServerError),
        (Response(status=429, body=b"slow down", retry_after_seconds=7), QueueFull),
    ],
)
def test_every_refusal_is_a_typed_error(response: Response, kind: type[BatchyardError]) -> None:
    error = problem_of(response)

    assert type(error) is kind
    assert error.retry_after_seconds == response.retry_after_seconds


def test_a_class_of_somebody_else_is_not_what_a_refusal_becomes() -> None:
    class Mine(InvalidInput):
        def __init__(self) -> None:
            super().__init__("of a model's author")

    assert Mine().code == "invalid_input"
    assert type(problem_of(problem(422, "invalid_input"))) is InvalidInput


def test_a_submission_tried_again_carries_the_same_key() -> None:
    accepted = schemas.SubmittedJob(
        id="0" * 16, model="m@1", lane="firm", state="queued", created_at="2026-01-01T00:00:00Z"
    )
    script = Script(ConnectionFailed("lost"), Response(status=202, body=msgspec.json.encode(accepted)))

    steps = calls.submit("m", "text", custom_id=None, idempotency_key=None, options={}, patience=Patience(60))
    record = drive(steps, script)

    assert record.job.id == "0" * 16
    first, second = script.requests
    assert first.idempotency_key is not None
    assert first == second


def test_what_has_no_json_form_is_refused_before_it_is_sent() -> None:
    script = Script()

    with pytest.raises(InvalidInput, match=r"client\.upload"):
        drive(
            calls.submit("m", object(), custom_id=None, idempotency_key=None, options={}, patience=Patience(1)), script
        )
    assert not script.requests


def job(state: schemas.StateWord, **more: Any) -> Response:
    document = schemas.Job(
        id="0" * 16, model="m@1", lane="firm", state=state, created_at="2026-01-01T00:00:00Z", **more
    )
    return Response(status=200, body=msgspec.json.encode(document))


def test_waiting_polls_until_the_job_has_ended() -> None:
    script = Script(job("queued"), ConnectionFailed("restart"), job("succeeded", result=msgspec.Raw(b"[1,2]")))

    record = drive(calls.wait("0" * 16, timeout_seconds=None, patience=Patience(60)), script)

    assert record.value() == [1, 2]
    assert script.requests[0].query == {"wait": "30.000"}


def test_a_wait_that_times_out_says_that_the_job_goes_on() -> None:
    with pytest.raises(WaitTimeout, match="still running"):
        drive(calls.wait("0" * 16, timeout_seconds=0, patience=Patience(1)), Script(job("running")))


def test_a_job_without_result_raises_its_own_error() -> None:
    failed = job("failed", error={"code": "bad_output", "message": "NaN"})  # as it travels
    record = drive(calls.get_job("0" * 16, wait_seconds=0, patience=Patience(1)), Script(failed))
    with pytest.raises(JobFailed, match="NaN") as caught:
        record.value()
    assert caught.value.code == "bad_output"

    cancelled = drive(calls.get_job("0" * 16, wait_seconds=0, patience=Patience(1)), Script(job("cancelled")))
    with pytest.raises(JobCancelled):
        cancelled.value()


def test_an_answer_of_something_else_asks_about_the_url() -> None:
    with pytest.raises(BatchyardError, match="is the URL right"):
        drive(calls.models(patience=Patience(1)), Script(Response(status=200, body=b"<html>hello</html>")))


def test_forgetting_twice_is_forgetting() -> None:
    drive(calls.forget("0" * 16, patience=Patience(60)), Script(ConnectionFailed("lost"), problem(410, "gone")))
