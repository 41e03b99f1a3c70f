"""Arrays in binary form, read back by psycopg's own loaders."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.adapt import Transformer
from psycopg.pq import Format

from batchyard.store.postgres import arrays
from batchyard.store.postgres.statement import Statement

INT4S, INT8S, BYTEAS, TEXTS = 1007, 1016, 1001, 1009
int4 = st.integers(-(2**31), 2**31 - 1)
int8 = st.integers(-(2**63), 2**63 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def load(array: bytes, oid: int) -> Any:
    return Transformer().get_loader(oid, Format.BINARY).load(bytes(array))


@given(st.lists(int4))
def test_small_integers_come_back(values: list[int]) -> None:
    assert load(arrays.int4s(values), INT4S) == values


@given(st.lists(int8))
def test_integers_come_back(values: list[int]) -> None:
    assert load(arrays.int8s(values), INT8S) == values


@given(st.lists(st.none() | int8, min_size=1))
def test_optional_integers_come_back_and_nothing_at_all_is_an_empty_array(values: list[int | None]) -> None:
    expected = values if any(value is not None for value in values) else []
    assert load(arrays.optional_int8s(values), INT8S) == expected


@given(st.lists(st.binary(), max_size=20))
def test_bodies_come_back(bodies: list[bytes]) -> None:
    assert load(arrays.byteas(bodies), BYTEAS) == bodies


def test_bodies_longer_than_the_prepared_lengths_come_back() -> None:
    bodies = [b"a" * 4095, b"", b"b" * 4096, b"c" * 100_000]
    assert load(arrays.byteas(bodies), BYTEAS) == bodies


@given(st.lists(st.none() | st.binary(), min_size=1), st.lists(st.none() | texts, min_size=1))
def test_optional_bodies_and_texts_come_back(bodies: list[bytes | None], words: list[str | None]) -> None:
    assert load(arrays.optional_byteas(bodies), BYTEAS) == (bodies if any(b is not None for b in bodies) else [])
    assert load(arrays.optional_texts(words), TEXTS) == (words if any(w is not None for w in words) else [])


@given(st.lists(st.tuples(int4, st.integers(0, 5))))
def test_runs_come_back(runs: list[tuple[int, int]]) -> None:
    assert load(arrays.int4_runs(runs), INT4S) == [value for value, count in runs for _ in range(count)]


def test_ids_come_from_a_range_and_numbers_too_large_are_refused() -> None:
    assert load(arrays.int8s(range(5, 5 + 3 * 1024, 1024)), INT8S) == [5, 1029, 2053]
    with pytest.raises(OverflowError):
        arrays.int8s([2**63])
    with pytest.raises(OverflowError):
        arrays.int4s([2**31])


def test_a_statement_numbers_its_parameters_once() -> None:
    statement = Statement("SELECT %(b)s,\n    %(a)s, %(b)s::int")
    assert statement.text == b"SELECT $1, $2, $1::int"
    assert statement.arguments({"a": 1, "b": 2, "unused": 3}) == [2, 1]
