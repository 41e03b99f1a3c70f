"""Results keep their value on the way from a model to a reader, and what cannot be carried is refused."""

import base64
import json
import math
import struct
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from batchyard import results
from batchyard.errors import BadOutput
from batchyard.jobs import ErrorInfo, ResultRow, State
from batchyard.tensors import TENSOR_EXTENSION

text = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)


class Odd:
    """Says that it is an array, and is none."""

    def __array__(self) -> None: ...


@given(plain)
def test_a_plain_value_is_stored_as_json_and_comes_back(value: Any) -> None:
    kind, body = results.encode(value)
    assert kind == results.JSON
    assert results.decode(kind, body) == value
    assert results.to_json(kind, body) == body
    assert msgspec.msgpack.decode(results.to_msgpack(kind, body)) == value


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 1, 2), (0,), (300,), (40_000,)])
def test_a_tensor_comes_back_with_its_dtype_and_shape(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    array[~np.isfinite(array)] = 0
    kind, body = results.encode(array)
    back = results.decode(kind, body)
    assert kind == results.TENSORS
    assert back.dtype == array.dtype
    assert back.shape == shape
    assert (back == array).all()
    assert back.flags.writeable
    assert results.decode(kind, body, numpy=False) == array.tolist()
    assert json.loads(results.to_json(kind, body)) == array.tolist()
    assert msgspec.msgpack.decode(results.to_msgpack(kind, body)).code == TENSOR_EXTENSION


def test_tensors_inside_a_value_stay_tensors() -> None:
    value = {
        "embedding": np.array([1.5, -2.0], "float32"),
        "tokens": 7,
        "none": None,
        "score": np.float64(0.5),
        "n": np.int32(3),
    }
    kind, body = results.encode(value)
    back = results.decode(kind, body)
    assert kind == results.TENSORS
    assert back["embedding"].tolist() == [1.5, -2.0]
    assert (back["tokens"], back["none"], back["score"], back["n"]) == (7, None, 0.5, 3)


def test_scalars_of_numpy_and_torch_are_numbers() -> None:
    assert results.encode({"a": np.float32(0.5), "b": np.bool_(True), "c": np.int64(2), "d": torch.tensor(3)}) == (
        results.JSON,
        b'{"a":0.5,"b":true,"c":2,"d":3}',
    )


def test_a_torch_tensor_is_stored_as_the_same_array() -> None:
    tensor = torch.arange(6, dtype=torch.float32, requires_grad=True).reshape(2, 3)
    assert results.encode(tensor) == results.encode(tensor.detach().numpy())
    half = torch.tensor([1.5, 3.0], dtype=torch.bfloat16)
    assert results.encode(half) == results.encode(np.array([1.5, 3.0], "float32"))


def test_memory_order_and_byte_order_do_not_show() -> None:
    array = np.arange(6, dtype="float32").reshape(2, 3)
    assert results.encode(np.asfortranarray(array)) == results.encode(array)
    assert results.encode(array.astype(">f4")) == results.encode(array)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        [1.0, float("inf")],
        {"a": {"b": (float("-inf"),)}},
        {"null": None, "x": np.float32("nan")},
        "a\0b",
        {"a\0b": 1},
        "\ud800",
        ["\udfff"],
        {"\ud800": 1},
        np.array([1.0, float("nan")]),
        np.array([1.0, float("inf")], "float32"),
        np.array([1.0, float("inf")], "float16"),
        np.array([float("inf"), float("-inf")], "float32"),
        {"v": np.array([float("nan")], "float32")},
        {"v": np.zeros(2), "s": float("nan")},
        {"v": np.zeros(2), "s": "\0"},
        torch.tensor([float("nan")]),
        np.array([1 + 2j]),
        np.array(["text"]),
        np.array([object()]),
        object(),
        {"f": print},
        Odd(),
    ],
    ids=repr,
)
def test_what_cannot_be_carried_is_refused(value: Any) -> None:
    with pytest.raises(BadOutput) as refused:
        results.encode(value)
    assert refused.value.code == "bad_output"


def test_a_value_that_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(BadOutput):
        results.encode(value)


def test_words_that_look_like_trouble_are_fine() -> None:
    for value in ("null", "\\u0000", {"null": None}, [None, "\\u0000"]):
        assert results.decode(*results.encode(value)) == value


def test_large_finite_numbers_are_fine_though_their_square_is_not() -> None:
    array = np.array([3e38, -3e38], "float32")
    assert (results.decode(*results.encode(array)) == array).all()


def test_a_matrix_is_encoded_row_by_row() -> None:
    matrix = np.random.default_rng(0).random((5, 384), "float32")
    assert results.encode_all(matrix) == [results.encode(row) for row in matrix]
    assert results.encode_all(torch.from_numpy(matrix)) == results.encode_all(matrix)
    assert results.encode_all(np.zeros((0, 3))) == []


def test_a_bad_result_of_a_batch_fails_alone() -> None:
    matrix = np.ones((3, 4), "float32")
    matrix[1, 2] = np.nan
    for encoded in (
        results.encode_all(matrix),
        results.encode_all(list(matrix)),
        results.encode_all([1, float("nan"), 2]),
    ):
        assert [isinstance(one, BadOutput) for one in encoded] == [False, True, False]


def test_scalars_per_row_become_numbers() -> None:
    assert results.encode_all(np.array([1.5, 2.5])) == [(results.JSON, b"1.5"), (results.JSON, b"2.5")]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_float32_is_shown_short_and_exact(values: list[float]) -> None:
    array = np.array(values, "float32")
    shown = json.loads(results.to_json(*results.encode(array)))
    assert (np.array(shown, "float32") == array).all()


def test_float32_prints_at_most_nine_digits() -> None:
    assert results.to_json(*results.encode(np.array([0.1, 1 / 3], "float32"))) == b"[0.1,0.33333334]"


def test_base64_carries_the_raw_elements() -> None:
    shown = json.loads(results.to_json(*results.encode({"v": np.array([1.0, 2.0], "float32")}), tensors="base64"))
    assert shown == {
        "v": {"$tensor": base64.b64encode(struct.pack("<2f", 1, 2)).decode(), "dtype": "float32", "shape": [2]}
    }


def test_an_error_is_read_as_an_error() -> None:
    body = msgspec.json.encode(ErrorInfo(code="invalid_input", message="no text"))
    assert results.decode(results.ERROR, body) == ErrorInfo(code="invalid_input", message="no text")
    assert results.to_json(results.ERROR, body) == body


def rows(count: int) -> list[ResultRow]:
    states = (State.SUCCEEDED, State.CANCELLED)
    return [ResultRow(7, i << 20, i, states[i % 2], f"c{i}" if i % 3 else None, 0, b"%d" % i) for i in range(count)]


@pytest.mark.parametrize("size", [1, 3, 1000, 10**6])
def test_frames_survive_any_cutting(size: int) -> None:
    sent = [
        results.Frame(3, False, rows(100)),
        results.Frame(3, False),
        results.Frame(3, False, settled=100),
        results.Frame(9, True, rows(5), settled=105),
    ]
    stream = b"".join(map(results.pack_frame, sent))
    frames = list(results.unpack_frames(stream[start : start + size] for start in range(0, len(stream), size)))
    assert [(frame.cursor, frame.finished, list(frame.records), frame.settled) for frame in frames] == [
        (frame.cursor, frame.finished, list(frame.records), frame.settled) for frame in sent
    ]


def test_a_stream_cut_short_yields_what_was_whole() -> None:
    stream = b"".join(results.pack_frame(results.Frame(cursor, False, rows(2))) for cursor in (1, 2))[:-1]
    assert [frame.cursor for frame in results.unpack_frames([stream])] == [1]
