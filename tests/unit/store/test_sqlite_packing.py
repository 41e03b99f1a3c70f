import pytest

from batchyard.jobs import Submission
from batchyard.store.sqlite import inserts
from batchyard.store.sqlite.claims import cut, tally


def _one(**values: object) -> Submission:
    given = {"tenant_id": 1, "queue_id": 2, "inputs": [b"1"], "costs": [3], **values}
    return Submission(**given)  # type: ignore[arg-type]


def test_spans_name_the_place_and_length_of_every_body() -> None:
    bodies = [b"abc", b"", b"d" * 10]
    joined = b"".join(bodies)
    found = [divmod(span, 1 << inserts.LENGTH_BITS) for span in inserts.spans(bodies)]
    assert [joined[place : place + length] for place, length in found] == bodies


def test_cutting_undoes_joining() -> None:
    bodies = [b"abc", b"", b"d" * 10]
    assert cut(b"".join(bodies), list(map(len, bodies))) == bodies


def test_a_large_group_travels_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inserts, "BLOB_BYTES", 10)
    packed = inserts.pack([_one(inputs=[b"x" * 6, b"y" * 6, b"z", b"w" * 30, b"v"], costs=[1] * 5)])
    assert [(start, blob) for start, blob, _ in packed.pieces] == [
        (0, b"x" * 6),
        (1, b"y" * 6 + b"z"),
        (3, b"w" * 30),
        (4, b"v"),
    ]
    assert (packed.total_cost, packed.input_bytes, packed.is_rich) == (5, 44, False)


def test_only_like_single_jobs_go_together() -> None:
    assert inserts.like(_one()) == inserts.like(_one(inputs=[b"2"], costs=[9]))
    for other in ({"priority": 6}, {"params": b"{}"}, {"labels": ["a"]}, {"trace_context": "t"}, {"deadline_ms": 5}):
        assert inserts.like(_one()) != inserts.like(_one(**other))
    assert inserts.like(_one(bulk_id=4)) is None
    assert inserts.like(_one(inputs=[b"1", b"2"], costs=[1, 1])) is None


def test_a_tally_counts_and_sums() -> None:
    assert tally([("a", 1), ("b", 2), ("a", 3)]) == {"a": (2, 4), "b": (1, 2)}
