"""A marker planted in inputs, names, keys and exceptions: no answer to anybody else and no log ever shows it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from batchyard.logs import JsonFormatter
from batchyard.store.tables import job_inputs
from batchyard_consumers.failures import FailureLog
from tests.services.api.test_tenants import Owner, furnished, key_of
from tests.services.api.yard import Yard

MARK = "s3cr3t-m4rk"


@contextmanager
def logged() -> Iterator[io.StringIO]:
    """All that is logged, as it is written, down to `debug`."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    # The client's own, which is not ours.
    quiet = [logging.getLogger(name) for name in ("httpx", "httpcore")]
    for logger in quiet:
        logger.setLevel(logging.WARNING)
    try:
        yield written
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        for logger in quiet:
            logger.setLevel(logging.NOTSET)


def test_logs_hold_no_input_no_result_and_no_key(yard: Yard) -> None:
    with logged() as written:
        tenant = yard.store.create_tenant("acme")
        key = key_of(yard, "acme", "jobs", "webhooks")
        furnished(yard, Owner("acme", tenant.id, key, MARK))
        bad = {**key, "authorization": key["authorization"][:-1] + ("a" if key["authorization"][-1] != "a" else "b")}
        assert yard.client.get("/v1/jobs", headers=bad).status_code == 401
        assert yard.client.post("/v1/models/strict/jobs", json={"input": MARK}, headers=key).status_code == 422
        assert yard.client.post(f"/v1/models/{MARK}/jobs", content=b'{"input": NaN', headers=key).status_code == 422
    text = written.getvalue()
    assert MARK not in text
    assert key["authorization"].split()[1] not in text
    assert key["authorization"].rsplit("_", 1)[1] not in text


def test_an_answer_tells_nothing_of_what_went_wrong_inside(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"password={MARK}")

    for method in ("get_jobs", "list_jobs", "submit", "tenants", "list_bulks", "get_bulk"):
        monkeypatch.setattr(yard.database, method, broken, raising=False)
    nowhere = "0123456789abcdef"
    answers = [
        yard.client.get(f"/v1/jobs/{nowhere}"),
        yard.client.get("/v1/jobs"),
        yard.client.post("/v1/models/echo/jobs", json={"input": 1}),
        yard.client.get("/v1/tenants"),
        yard.client.get(f"/v1/bulks/{nowhere}"),
        yard.client.get(f"/v1/bulks/{nowhere}/results"),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (500, "server_error"), answer.text
        assert MARK not in answer.text
        assert "Traceback" not in answer.text
        assert "line " not in answer.text


def test_a_statement_that_fails_is_logged_without_its_values(yard: Yard) -> None:
    store: Any = yard.store
    row = {"job_id": 1, "body": MARK.encode(), "custom_id": MARK}
    with store._writing() as connection:
        connection.execute(job_inputs.insert().values(row))
    with pytest.raises(sa.exc.IntegrityError) as failed, store._writing() as connection:
        connection.execute(job_inputs.insert().values(row))
    with logged() as written:
        logging.getLogger(__name__).error("failed", exc_info=failed.value)
    assert "IntegrityError" in written.getvalue()
    assert MARK not in written.getvalue()
    with store._writing() as connection:
        connection.execute(job_inputs.delete())


def test_what_a_model_says_of_an_input_stands_in_the_jobs_error_and_in_no_log() -> None:
    with logged() as written:
        try:
            int(MARK)
        except ValueError as error:
            FailureLog().note(model="m@1", stage="forward", error=error)
    [line] = [json.loads(line) for line in written.getvalue().splitlines() if "model_failed" in line]
    assert (line["event"], line["kind"], bool(line["where"])) == ("model_failed", "ValueError", True)
    assert MARK not in written.getvalue()
