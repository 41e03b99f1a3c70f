"""Events are logged with a stable name and fields, for people or for programs."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from batchyard.logs import LogFormat, configure_logging, log_event


@pytest.fixture(autouse=True)
def root_logger_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def logged(format: LogFormat, **fields: Any) -> str:  # noqa: A002
    stream = io.StringIO()
    configure_logging("info", format, stream=stream)
    log_event(logging.getLogger("batchyard.test"), "consumer_ready", **fields)
    return stream.getvalue()


def test_json_has_one_object_a_line_with_the_event_and_its_fields() -> None:
    entry = json.loads(logged("json", pool="local", seconds=1.5, name="any"))
    assert (entry["event"], entry["level"], entry["logger"]) == ("consumer_ready", "info", "batchyard.test")
    assert (entry["pool"], entry["seconds"], entry["name"]) == ("local", 1.5, "any")
    assert entry["time"].endswith("Z")


def test_console_reads_as_a_line() -> None:
    assert logged("console", pool="local").endswith("info    batchyard.test: consumer_ready pool=local\n")


def test_what_somebody_else_wrote_makes_no_line_and_moves_no_cursor() -> None:
    written = logged("console", reason="no\n12:00:00 error forged\x1b[2J\r\x9b\u2028é")
    assert written.endswith("reason=no\\n12:00:00 error forged\\x1b[2J\\r\\x9b\\u2028é\n")
    assert len(written.splitlines()) == 1


def test_json_can_be_written_of_any_text() -> None:
    assert json.loads(logged("json", reason="half \ud800"))["reason"] == "half \ud800"
    assert len(logged("json", reason="no\nline").splitlines()) == 1


def test_an_event_may_also_be_named_beside_a_message_for_people() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    logging.getLogger("batchyard.test").info("the broker is back", extra={"event": "broker_up", "after_seconds": 2})
    entry = json.loads(stream.getvalue())
    assert (entry["event"], entry["message"], entry["after_seconds"]) == ("broker_up", "the broker is back", 2)


def test_auto_is_json_where_nobody_looks() -> None:
    json.loads(logged("auto"))


def test_messages_of_other_libraries_keep_their_text() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    logging.getLogger("elsewhere").warning("it is %s", "late")
    entry = json.loads(stream.getvalue())
    assert (entry["event"], entry["message"]) == ("log", "it is late")


def test_an_error_brings_its_traceback() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    try:
        raise KeyError("gone")
    except KeyError as error:
        log_event(logging.getLogger("batchyard.test"), "stage_failed", level=logging.ERROR, error=error)
    assert "KeyError" in json.loads(stream.getvalue())["traceback"]


def test_the_level_is_obeyed() -> None:
    stream = io.StringIO()
    configure_logging("warning", "json", stream=stream)
    log_event(logging.getLogger("batchyard.test"), "quiet")
    assert stream.getvalue() == ""
