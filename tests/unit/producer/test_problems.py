import json
import logging

import pytest

from batchyard.errors import InvalidInput, QueueFull, Unauthorized, Unavailable, from_problem
from batchyard.schemas import InputFault
from batchyard.store.sql import unavailable
from batchyard_producer import problems


def test_an_error_and_its_document_are_the_same_thing() -> None:
    error = InvalidInput("too long", pointer="/input", index=3, errors=[InputFault(pointer="/input", detail="x")])
    status, headers, body = problems.render(error)
    document = json.loads(body)
    assert (status, document["code"], document["pointer"], document["index"]) == (422, "invalid_input", "/input", 3)
    assert document["errors"] == [{"pointer": "/input", "detail": "x"}]
    assert dict(headers)[b"content-type"] == b"application/problem+json"
    back = from_problem(document, status=status)
    assert isinstance(back, InvalidInput)
    assert (back.message, back.details["index"]) == ("too long", 3)


@pytest.mark.parametrize(
    ("error", "retry_after"),
    [(QueueFull("full", retry_after_seconds=2.1), b"3"), (Unavailable("away"), b"1"), (Unauthorized("who"), None)],
)
def test_what_may_be_retried_says_when(error: Exception, retry_after: bytes | None) -> None:
    assert dict(problems.render(error)[1]).get(b"retry-after") == retry_after


def test_the_unexpected_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        status, _, body = problems.render(KeyError("a secret"))
    assert (status, json.loads(body)["code"]) == (500, "server_error")
    assert b"secret" not in body
    assert caplog.records


def test_which_database_is_away_and_why_is_not_told() -> None:
    away = unavailable(OSError("connection to 10.0.0.7 failed for user s3cr3t"), database="/srv/state/batchyard.db")
    assert "10.0.0.7" in away.message
    status, headers, body = problems.render(away)
    assert (status, json.loads(body)["code"], dict(headers)[b"retry-after"]) == (503, "unavailable", b"1")
    assert json.loads(body)["detail"] == "the database cannot be used now: try again"
    assert b"10.0.0.7" not in body
    assert b"/srv" not in body
