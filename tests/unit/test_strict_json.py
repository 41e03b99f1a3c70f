import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard import strict_json
from batchyard.errors import InvalidRequest

NAMES = (b'"input"', b'"params"')


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[1,]",
        b"{'a': 1}",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"1e400",
        b"01",
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"\x01"',
        b'"\\ud800"',
        b'"\\udc00x"',
        b'"\\ud800\\u0041"',
        b'{"\\ud800": 1}',
        b"\xef\xbb\xbf1",
        b"[" * 5000 + b"]" * 5000,
        b"1 2",
    ],
)
def test_malformed_text_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidRequest):
        strict_json.decode(text)


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert strict_json.decode(b'"\\ud83d\\ude00"') == "\N{GRINNING FACE}"


@pytest.mark.parametrize(
    ("text", "pointer"),
    [
        (b'{"input": "a\\u0000b"}', "/input"),
        (b'{"input": {"a/b~\\u0000": 1}}', "/input"),
        (b'{"input": [1, 18446744073709551616]}', "/input/1"),
        (b'{"input": {"a/b": -9223372036854775809}}', "/input/a~1b"),
        (b'{"input": ' + b"1" * 400 + b"}", "/input"),
    ],
)
def test_what_a_scan_suspects_a_walk_finds(text: bytes, pointer: str) -> None:
    assert strict_json.needs_walk(text)
    with pytest.raises(InvalidRequest) as caught:
        strict_json.walk(strict_json.decode(text))
    assert caught.value.details["pointer"] == pointer


@pytest.mark.parametrize(
    "text", [b'"12345678901234567890123"', b"[0.12345678901234567890123]", b'"\\\\u0000"', b"18446744073709551615"]
)
def test_a_suspicion_may_be_unfounded(text: bytes) -> None:
    assert strict_json.needs_walk(text)
    strict_json.walk(strict_json.decode(text))


def test_depth_counts_levels_of_the_whole_document() -> None:
    fits = b"[" * 64 + b"]" * 64
    strict_json.walk(strict_json.decode(fits))
    deep = b"[" * 65 + b"]" * 65
    assert strict_json.may_be_deep(deep)
    with pytest.raises(InvalidRequest, match="64 levels"):
        strict_json.walk(strict_json.decode(deep))
    assert not strict_json.may_be_deep(b'"' + b"x" * 500 + b'"')


def test_brackets_in_strings_are_a_suspicion_only() -> None:
    text = b'"' + b"[" * 200 + b'"'
    assert strict_json.may_be_deep(text)
    strict_json.walk(strict_json.decode(text))


@pytest.mark.parametrize(
    "text",
    [
        b'{"input": 1, "input": 2}',
        b'{"input": 1, "inp\\u0075t": 2}',
        b'{"params": {}, "input": {"input": 3}, "params": {}}',
    ],
)
def test_a_member_given_twice_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidRequest, match="twice"):
        strict_json.refuse_repeated_members(text, members=NAMES)


@pytest.mark.parametrize(
    "text", [b'{"input": 1, "params": {}}', b'{"input": {"input": [{"input": 1}]}}', b'{"input": "\\u0041"}']
)
def test_the_same_name_further_inside_is_no_repetition(text: bytes) -> None:
    strict_json.refuse_repeated_members(text, members=NAMES)


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


def _is_clean(value: Any) -> bool:
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, str):
        return "\0" not in value
    if isinstance(value, int):
        return -(1 << 63) <= value < 1 << 64
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list):
        return all(map(_is_clean, value))
    return all(_is_clean(key) and _is_clean(member) for key, member in value.items())


@given(_values, st.booleans())
def test_exactly_the_clean_values_pass(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    try:
        decoded = strict_json.decode(text)
        if strict_json.needs_walk(text) or strict_json.may_be_deep(text):
            strict_json.walk(decoded)
    except InvalidRequest:
        assert not _is_clean(value)
    else:
        assert _is_clean(value)
        assert decoded == value
