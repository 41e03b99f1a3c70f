import pytest

from batchyard.errors import InvalidInput, TooLarge
from batchyard.inputs import MAX_FAULTS, Validator, check_sizes, payload_references


def place(index: int) -> str:
    return f"/inputs/{index}"


def test_references_stay_within_the_schema() -> None:
    schema = {"$ref": "#/$defs/item", "$defs": {"item": {"type": "integer"}}}
    Validator(schema).check([1, 2], place=place, several=True)
    with pytest.raises(InvalidInput):
        Validator(schema).check([1, "2"], place=place, several=True)
    with pytest.raises(ValueError, match="example"):
        Validator({"$ref": "http://example.invalid/schema"})


def test_older_drafts_are_understood() -> None:
    tuple_form = {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "integer"}]}
    with pytest.raises(InvalidInput):
        Validator(tuple_form).check([["x"]], place=place, several=True)


def test_a_single_input_may_have_several_faults_and_no_index() -> None:
    schema = {"type": "object", "additionalProperties": {"type": "integer"}}
    value = {f"m{number}": "x" for number in range(50)}
    with pytest.raises(InvalidInput) as caught:
        Validator(schema).check([value], place=lambda _: "/input", several=False)
    assert len(caught.value.details["errors"]) == MAX_FAULTS
    assert "index" not in caught.value.details


def test_a_pointer_escapes_what_it_must() -> None:
    schema = {"type": "object", "additionalProperties": {"type": "integer"}}
    with pytest.raises(InvalidInput) as caught:
        Validator(schema).check([{"a/b~": "x"}], place=place, several=True)
    assert caught.value.details["pointer"] == "/inputs/0/a~1b~0"


def test_payloads_are_found_anywhere_and_once() -> None:
    reference = {"$payload": "0000000000000005"}
    values = [reference, {"a": [reference, {"b": {"$payload": "0000000000000006"}}]}, "x", {"$payload": "x", "more": 1}]
    named = [(one.index, one.payload_id, one.pointer) for one in payload_references(values, place=place)]
    assert named == [(0, 5, place(0)), (1, 5, place(1)), (1, 6, place(1))]
    for bad in (7, "x", "../x", None):
        with pytest.raises(InvalidInput) as caught:
            payload_references([1, {"$payload": bad}], place=place)
        assert caught.value.details == {"pointer": "/inputs/1", "index": 1}


def test_sizes() -> None:
    assert check_sizes([b"a", b"bcd"], max_input_bytes=3, several=True) == [1, 3]
    with pytest.raises(TooLarge, match="input 1 has 3 bytes; the limit is 2"):
        check_sizes([b"a", b"bcd"], max_input_bytes=2, several=True)
