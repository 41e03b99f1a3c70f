"""Results put back into the order of the inputs, holding little."""

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from batchyard import results
from batchyard.jobs import ID_STRIDE, ResultRow, State
from batchyard.sdk.reading import RESULT_BYTES, Hole, InOrder


def row(seq: int, index: int, *, size: int = 1) -> ResultRow:
    return ResultRow(seq, (index + 1) * ID_STRIDE, index, State.SUCCEEDED, None, results.JSON, b"1" * size)


def held_bytes(order: InOrder) -> int:
    return sum(RESULT_BYTES + len(row.body or b"") for row in order._held.values())


def read_through(order: InOrder, flushes: list[list[ResultRow]], *, jobs: int) -> Iterator[tuple[int, bool]]:
    """Index, and whether it is a hole, of everything that comes out; a stream is read as often as it is asked for."""
    cursor, is_over = 0, False
    while not is_over:
        for rows in flushes:
            if rows and rows[-1].seq > cursor:
                cursor = rows[-1].seq
                yield from ((result.index, isinstance(result, Hole)) for result in order.put(rows))
                if order.must_go_back:
                    break
        else:
            for piece in order.settle(jobs):
                yield from ((result.index, isinstance(result, Hole)) for result in piece)
            is_over = not order.must_go_back
        if order.must_go_back:
            cursor = order.go_back()


@st.composite
def bulks(draw: st.DrawFn) -> tuple[list[list[ResultRow]], int]:
    """Flushes in commit order, some of their jobs retired, and how many jobs there are."""
    jobs = draw(st.integers(1, 60))
    ended = draw(st.permutations(range(jobs)))
    retired = draw(st.sets(st.integers(0, jobs - 1)))
    sizes = draw(st.lists(st.integers(1, 300), min_size=jobs, max_size=jobs))
    flush = draw(st.integers(1, 9))
    return [
        [row(start + 1, index, size=sizes[index]) for index in ended[start : start + flush] if index not in retired]
        for start in range(0, jobs, flush)
    ], jobs


@given(bulks(), st.integers(1, 70), st.integers(1, 40 * (RESULT_BYTES + 300)), st.integers(0, 70))
def test_everything_comes_once_in_order_and_little_is_held(
    bulk: tuple[list[list[ResultRow]], int], max_held: int, max_bytes: int, first: int
) -> None:
    flushes, jobs = bulk
    kept = {row.index for rows in flushes for row in rows}
    order = InOrder(first=first, max_held=max_held, max_bytes=max_bytes)

    found = []
    for index, is_hole in read_through(order, flushes, jobs=jobs):
        found.append((index, is_hole))
        assert len(order._held) <= max_held
        assert held_bytes(order) == order._held_bytes <= max_bytes

    assert found == [(index, index not in kept) for index in range(first, jobs)]


def test_what_fits_is_read_once() -> None:
    order = InOrder(first=0, max_held=10)

    assert order.put([row(1, index) for index in range(1, 10)]) == []
    assert [result.index for result in order.put([row(2, 0)])] == list(range(10))
    assert not order.has_let_go


def test_the_furthest_are_let_go_of_and_read_again_from_before_the_first_of_them() -> None:
    order = InOrder(first=0, max_held=4)
    order.put([row(5, 1), row(5, 2)])
    order.put([row(6, 9)])
    order.put([row(7, 3), row(7, 4)])

    assert order.has_let_go
    assert sorted(order._held) == [1, 2, 3]
    assert order.put([row(8, 6)]) == []
    assert sorted(order._held) == [1, 2, 3]

    assert [result.index for result in order.put([row(9, 0)])] == [0, 1, 2, 3]
    assert order.must_go_back
    assert order.go_back() == 5
    assert not order.has_let_go


def test_large_results_are_let_go_of_sooner() -> None:
    order = InOrder(first=0, max_held=1000, max_bytes=10_000)

    order.put([row(1, index, size=3000) for index in range(1, 9)])

    assert sorted(order._held) == [1, 2]
