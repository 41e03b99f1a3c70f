import json
from typing import Any

import msgspec
import pytest

from batchyard.errors import BatchyardError, InvalidInput, InvalidRequest, QueueFull, TooLarge
from batchyard.jobs import Lane
from batchyard.settings import ServerSettings
from batchyard.store.base import BulkView
from batchyard.submission import BulkPlan, Prepared, Submitter
from tests.unit.samples import CALLER, NOW_MS, model_version, submitter

TEXT = {"type": "string", "maxLength": 5}
ITEM = {"type": "object", "properties": {"text": {"type": "string"}, "n": {"type": "integer"}}, "required": ["text"]}


def submit(core: Submitter, body: bytes | dict[str, Any], *, model: str = "echo", key: str | None = None) -> Prepared:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return core.jobs(text, model=model, caller=CALLER, now_ms=NOW_MS, idempotency_key=key)


def plan(**changes: Any) -> BulkPlan:
    values: dict[str, Any] = {
        "bulk_id": 77,
        "tenant_id": 1,
        "queue_id": 1,
        "chunk_size": 100,
        "priority": 5,
        "deadline_ms": None,
        "max_failures": 3,
        "params": None,
        "labels": (),
        "validate": True,
    }
    return BulkPlan(**(values | changes))


def test_one_input_becomes_one_job_with_its_text_untouched() -> None:
    prepared = submit(submitter(), b'{"input": {"a" : [1.0, "\\u00e9"]} }')
    assert prepared.submission.inputs == [b'{"a" : [1.0, "\\u00e9"]}']
    assert prepared.submission.costs == [len(prepared.submission.inputs[0])]
    assert (prepared.several, prepared.lane, prepared.submission.queue_id) == (False, Lane.FIRM, 1)
    assert (prepared.submission.priority, prepared.submission.max_failures) == (5, 3)


def test_everything_that_may_be_told() -> None:
    version = model_version(units_per_byte=0.5, seconds_per_unit=0.1)
    prepared = submit(
        submitter(version),
        {
            "inputs": ["a", "bbb"],
            "params": {"k": 1},
            "priority": 9,
            "tolerant": True,
            "deadline_seconds": 60,
            "max_failures": 7,
            "labels": ["x", "y", "x"],
            "custom_ids": ["one", None],
        },
        model="echo@1",
    )
    made = prepared.submission
    assert (made.inputs, made.costs) == ([b'"a"', b'"bbb"'], [2, 3])
    assert (made.queue_id, made.priority, made.max_failures) == (2, 9, 7)
    assert (made.params, made.labels, made.custom_ids) == (b'{"k":1}', ("x", "y"), ["one", None])
    assert made.deadline_ms == NOW_MS + 60_000
    assert made.start_by_ms == NOW_MS + 60_000 - 450
    assert prepared.several


@pytest.mark.parametrize(
    ("body", "message", "pointer"),
    [
        (b"", "not valid JSON", ""),
        (b"{}", "exactly one of", ""),
        (b'{"input": 1, "inputs": [1]}', "exactly one of", ""),
        (b'{"inputs": []}', "no inputs", "/inputs"),
        (b'{"input": 1, "colour": 2}', "unknown field `colour`", ""),
        (b'{"input": 1, "priority": "high"}', "Expected `int`", "/priority"),
        (b'{"input": 1, "input": 2}', "given twice", "/input"),
        (b'{"inputs": [1], "labels": [], "labels": ["x"]}', "given twice", "/labels"),
        (b'{"input": 1, "custom_ids": ["a"]}', "goes with `inputs`", "/custom_ids"),
        (b'{"inputs": [1], "custom_id": "a"}', "goes with `input`", "/custom_id"),
        (b'{"inputs": [1, 2], "custom_ids": ["a"]}', "one per input", "/custom_ids"),
        (b'{"input": NaN}', "not valid JSON", ""),
        (b'{"input": "\\ud800"}', "not valid JSON", ""),
        (b'{"input": "\xff"}', "not valid JSON", ""),
        (b'{"input": 1e999}', "not valid JSON", ""),
        (b'{"input": "a\\u0000"}', "NUL", "/input"),
        (b'{"input": 1, "labels": ["\\u0000"]}', "NUL", "/labels/0"),
        (b'{"input": 99999999999999999999}', "64 bits", "/input"),
        (b'{"inputs": [1, 99999999999999999999]}', "64 bits", "/inputs/1"),
        (b'{"input": ' + b"[" * 70 + b"]" * 70 + b"}", "64 levels", None),
        (b'{"inputs": [1, ' + b"[" * 70 + b"]" * 70 + b"]}", "64 levels", None),
        (b'{"inputs": [1], "params": {"a": ' + b"[" * 70 + b"]" * 70 + b"}}", "64 levels", None),
        (b'{"input": ' + b"[" * 5000 + b"]" * 5000 + b"}", "64 levels", ""),
    ],
)
def test_bad_requests_say_what_and_where(body: bytes, message: str, pointer: str | None) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        submit(submitter(), body)
    assert caught.value.code == "invalid_request"
    if pointer is not None:
        assert caught.value.details["pointer"] == pointer


def test_an_input_is_checked_against_the_schema() -> None:
    core = submitter(model_version(input_schema=ITEM))
    submit(core, {"input": {"text": "a", "n": 1}})
    with pytest.raises(InvalidInput) as caught:
        submit(core, {"input": {"text": "secret" * 100, "n": "not to be shown"}})
    assert caught.value.details["pointer"] == "/input/n"
    assert "not to be shown" not in caught.value.message
    assert "index" not in caught.value.details


def test_of_several_inputs_the_first_faults_are_listed_with_their_index() -> None:
    core = submitter(model_version(input_schema=ITEM))
    with pytest.raises(InvalidInput) as caught:
        submit(core, {"inputs": [{"text": "a"}, {"text": 1}, {"text": "b"}, *[{}] * 30]})
    details = caught.value.details
    assert (details["pointer"], details["index"]) == ("/inputs/1/text", 1)
    assert len(details["errors"]) == 10
    assert [fault.index for fault in details["errors"][:3]] == [1, 3, 4]


def test_a_payload_stands_for_anything() -> None:
    core = submitter(model_version(input_schema=ITEM))
    prepared = submit(core, {"inputs": [{"text": {"$payload": "00000000000000ff"}}, {"text": "x"}]})
    assert [one.payload_id for one in prepared.submission.payloads] == [255]
    prepared = submit(core, b'{"input": {"text": {"\\u0024payload": "00000000000000ff"}}}')
    assert [one.payload_id for one in prepared.submission.payloads] == [255]
    with pytest.raises(InvalidInput, match="no payload of yours"):
        submit(core, {"input": {"text": {"$payload": "../../etc"}}})
    with pytest.raises(InvalidInput, match="/input/n"):
        submit(core, {"input": {"text": {"$payload": "00000000000000ff"}, "n": "x"}})


def test_limits_are_named() -> None:
    core = submitter(server=ServerSettings(max_inputs=3, max_input_bytes=10), max_queued=5)
    with pytest.raises(TooLarge) as caught:
        submit(core, {"inputs": [1, 2, 3, 4]})
    assert caught.value.details == {"limit": 3}
    with pytest.raises(TooLarge) as caught:
        submit(core, {"inputs": ["x", "x" * 9]})
    assert caught.value.details == {"limit": 10, "index": 1}
    submit(core, {"inputs": [1, 2, 3]})
    with pytest.raises(QueueFull) as full:
        submit(core, {"inputs": [1, 2, 3]})
    assert full.value.details["limit"] == 5


def test_a_refused_call_takes_no_room_in_the_queue() -> None:
    core = submitter(model_version(input_schema=TEXT), max_queued=1)
    with pytest.raises(InvalidInput):
        submit(core, {"input": 1})
    submit(core, {"input": "x"})


def test_the_digest_is_that_of_the_meaning_with_the_alias_as_written() -> None:
    core = submitter(model_version("echo@1"), model_version("echo@2", id=2))

    def digest(body: bytes, model: str = "echo") -> bytes | None:
        return submit(core, body, model=model, key="k").submission.idempotency_digest

    known = digest(b'{"input": {"a": "\\u0041", "b": 1}}')
    assert known == digest(b'{ "input": {"b":1,"a":"A"}, "priority": 5 }')
    assert known != digest(b'{"input": {"a": "\\u0041", "b": 1}}', "echo@1")
    assert known != digest(b'{"input": {"a": "\\u0041", "b": 2}}')
    assert known != digest(b'{"inputs": [{"a": "\\u0041", "b": 1}]}')
    assert known != digest(b'{"input": {"a": "\\u0041", "b": 1}, "priority": 6}')
    assert submit(core, b'{"input": 1}').submission.idempotency_digest is None


def test_a_chunk_takes_what_its_bulk_was_told() -> None:
    bulk = plan(priority=8, labels=("l",), params=b"{}", deadline_ms=NOW_MS)
    made = submitter().chunk(b'{"inputs": ["a", "b"]}', plan=bulk, caller=CALLER, idempotency_key="0").submission
    assert (made.bulk_id, made.priority, made.labels, made.params) == (77, 8, ("l",), b"{}")
    assert (made.inputs, made.custom_ids, made.deadline_ms) == ([b'"a"', b'"b"'], None, NOW_MS)


def test_a_chunk_of_lines_is_the_same_as_one_of_json() -> None:
    core = submitter()
    lines = b'{"input": "a", "custom_id": "one"}\n\n{"input":{"b":1}}\r\n'
    from_lines = core.chunk_lines(lines, plan=plan(), caller=CALLER, idempotency_key="0").submission
    document = b'{"inputs": ["a", {"b":1}], "custom_ids": ["one", null]}'
    assert from_lines == core.chunk(document, plan=plan(), caller=CALLER, idempotency_key="0").submission


@pytest.mark.parametrize(
    ("lines", "index"),
    [
        (b'{"input": 1}\n{"input": 1, "input": 2}', 1),
        (b'{"input": 1}\n\n{"input": 1, "inp\\u0075t": 2}', 1),
        (b'{"input": 1, "custom_id": "a", "custom_id": "b"}', 0),
        (b'{"input": 1}\n{"input": "\\u0000"}', 1),
        (b'{"input": 1}\n{"input": ' + b"[" * 70 + b"]" * 70 + b"}", None),
        (b'{"input": 1}\n{"inputs": 1}', None),
        (b'{"input": 1}\nnonsense', None),
        (b"", None),
    ],
)
def test_bad_lines_are_refused_with_their_index(lines: bytes, index: int | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        submitter().chunk_lines(lines, plan=plan(), caller=CALLER)
    if index is not None:
        assert caught.value.details["index"] == index


def test_an_input_that_does_not_fit_names_its_line() -> None:
    core = submitter(model_version(input_schema=TEXT))
    with pytest.raises(InvalidInput) as caught:
        core.chunk_lines(b'{"input": "a"}\n{"input": 1}', plan=plan(), caller=CALLER)
    assert (caught.value.details["index"], caught.value.details["pointer"]) == (1, "/input")
    made = core.chunk_lines(b'{"input": "a"}\n{"input": 1}', plan=plan(validate=False), caller=CALLER)
    assert len(made.submission.inputs) == 2


def test_a_chunk_keeps_to_its_size() -> None:
    with pytest.raises(TooLarge, match="the limit is 2"):
        submitter().chunk(b'{"inputs": [1, 2, 3]}', plan=plan(chunk_size=2), caller=CALLER)


def test_a_bulk_keeps_what_it_was_told_until_its_chunks_come() -> None:
    core = submitter()
    body = b'{"model": "echo", "priority": 7, "deadline_seconds": 10, "labels": ["l"], "chunk_size": 50}'
    config = core.bulk(body, caller=CALLER, idempotency_key="k")
    assert (config.queue_id, config.chunk_size) == (1, 50)
    view = BulkView(
        id=5,
        tenant_id=1,
        queue_id=config.queue_id,
        defaults=config.defaults,
        chunk_size=config.chunk_size,
        jobs=0,
        sealed_at_ms=None,
        paused=False,
        cancel_requested=False,
        created_at_ms=NOW_MS,
        counts={},
        cost=0,
    )
    made = core.plan(view)
    assert (made.bulk_id, made.priority, made.deadline_ms, made.labels) == (5, 7, NOW_MS + 10_000, ("l",))
    again = core.bulk(
        b'{"chunk_size":50,"labels":["l"],"deadline_seconds":10,"priority":7,"model":"echo"}',
        caller=CALLER,
        idempotency_key="k",
    )
    assert again.idempotency_digest == config.idempotency_digest


@pytest.mark.parametrize("body", [b'{"model": "echo", "chunk_size": 10001}', b'{"priority": 1}', b'{"model": "nope"}'])
def test_a_bad_bulk_is_refused(body: bytes) -> None:
    with pytest.raises(BatchyardError):
        submitter().bulk(body, caller=CALLER)


def test_what_is_stored_of_params_is_json() -> None:
    made = submit(submitter(), {"input": 1, "params": {"b": [1, {"c": None}]}}).submission
    assert made.params is not None
    assert msgspec.json.decode(made.params) == {"b": [1, {"c": None}]}
