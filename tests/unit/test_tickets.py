"""The ticket: what goes in comes out, and nothing else is taken for one."""

import json
import pickle

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.broker import (
    MOST_TICKET_JOBS,
    TICKET_BYTES,
    Ticket,
    decode_ticket,
    encode_ticket,
    pack_ids,
    queue_name,
    unpack_ids,
)
from batchyard.broker.client import HINT_JOBS
from batchyard.broker.tickets import redis_message
from batchyard.jobs import Lane

IDS = st.integers(min_value=1, max_value=(1 << 63) - 1)


@given(queue_id=st.integers(1, (1 << 31) - 1), ids=st.lists(IDS, min_size=1, max_size=MOST_TICKET_JOBS))
def test_a_ticket_survives_its_message(queue_id: int, ids: list[int]) -> None:
    body = encode_ticket(Ticket(queue_id, ids))
    assert len(body) <= TICKET_BYTES
    assert decode_ticket(body) == (queue_id, ids)
    envelope = json.loads(redis_message(Ticket(queue_id, ids), name="q"))
    assert decode_ticket(envelope["body"]) == (queue_id, ids)


def test_a_range_of_ids_is_as_good_as_a_list() -> None:
    assert decode_ticket(encode_ticket(Ticket(1, range(1024, 1024 * 4, 1024)))) == (1, [1024, 2048, 3072])


def test_the_envelope_is_celerys() -> None:
    headers = json.loads(redis_message(Ticket(1, [5]), name="q"))["headers"]
    assert headers["task"] == "batchyard.ticket"
    assert {"lang", "id", "root_id", "parent_id", "group", "retries", "timelimit", "eta", "expires"} <= headers.keys()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x80\x04",
        pickle.dumps([1]),
        b"null",
        b"[[], {}, {}]",
        b'[[], {"queue": 1}, {}]',
        b'[[], {"queue": 1, "ids": []}, {}]',
        b'[[], {"queue": 0, "ids": [1]}, {}]',
        b'[[], {"queue": true, "ids": [1]}, {}]',
        b'[[], {"queue": 1, "ids": [0]}, {}]',
        b'[[], {"queue": 1, "ids": [-1]}, {}]',
        b'[[], {"queue": 1, "ids": ["1"]}, {}]',
        b'[[], {"queue": 1, "ids": [1.5]}, {}]',
        b'[[], {"queue": 1, "ids": [9223372036854775808]}, {}]',
        b'[[], {"queue": 1, "ids": [1], "more": 1}, {}]',
        b'[[1], {"queue": 1, "ids": [1]}, {}]',
        b'[[], {"queue": 1, "ids": [1]}, {"chain": ["os.system"]}]',
        b'{"queue": 1, "ids": [1]}',
        b"[" * 4000,
        b'[[], {"queue": 1, "ids": [' + b"1," * MOST_TICKET_JOBS + b"1]}, {}]",
        b'[[], {"queue": 1, "ids": [1]}, {}]' + b" " * TICKET_BYTES,
        b"\xff" * 100,
        "\ud800",
    ],
)
def test_anything_else_is_no_ticket(body: bytes | str) -> None:
    assert decode_ticket(body) is None


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=20).map(json.dumps)
)
def test_no_body_raises(body: bytes | str) -> None:
    decode_ticket(body)


@given(st.lists(IDS, max_size=300))
def test_ids_survive_packing(ids: list[int]) -> None:
    assert unpack_ids(pack_ids(ids)) == ids


@pytest.mark.parametrize("packed", [b"1234567", b"\xff" * 8, b"\0" * 8, b"\0" * 8 * (HINT_JOBS + 1)])
def test_what_was_not_packed_is_nothing(packed: bytes) -> None:
    assert unpack_ids(packed) == []


def test_a_queue_is_named_after_its_model_version_and_lane() -> None:
    assert queue_name("minilm", "2", Lane.TOLERANT) == "batchyard.minilm@2.tolerant"


def test_msgspec_raises_what_is_caught() -> None:
    assert issubclass(msgspec.ValidationError, msgspec.MsgspecError)
