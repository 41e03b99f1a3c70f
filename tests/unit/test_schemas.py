import msgspec
import pytest

from batchyard import schemas


@pytest.mark.parametrize(
    ("text", "fault", "pointer"),
    [
        (b'{"input": 1, "priority": 11}', "Expected `int` <= 9", "/priority"),
        (b'{"input": 1, "labels": ["a", 3]}', "Expected `str`, got `int`", "/labels/1"),
        (b'{"surprise": 1}', "Object contains unknown field `surprise`", ""),
        (b"[]", "Expected `object`, got `array`", ""),
        (b'{"input": 1, "params": 3}', "Expected `object | null`, got `int`", "/params"),
    ],
)
def test_a_type_error_names_its_place(text: bytes, fault: str, pointer: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(text, type=schemas.JobsRequest)
    assert schemas.split_fault(caught.value) == (fault, pointer)


def test_inputs_pass_through_undecoded() -> None:
    request = msgspec.json.decode(b'{"inputs": [ {"a" : 1.0}, "x" ]}', type=schemas.JobsRequest)
    assert isinstance(request.inputs, list)
    assert [bytes(text) for text in request.inputs] == [b'{"a" : 1.0}', b'"x"']


def test_times_are_rfc_3339_and_come_back() -> None:
    assert schemas.rfc3339(1_763_694_000_007) == "2025-11-21T03:00:00.007Z"
    assert schemas.parse_rfc3339("2025-11-21T03:00:00.007Z") == 1_763_694_000_007
    assert schemas.parse_rfc3339("2025-11-21T04:00:00.007+01:00") == 1_763_694_000_007
    assert schemas.optional_rfc3339(None) is None


def test_every_struct_has_a_json_schema() -> None:
    structs = [
        kind
        for kind in vars(schemas).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == schemas.__name__
    ]
    _, components = msgspec.json.schema_components(structs)
    assert {kind.__name__ for kind in structs} <= components.keys()
