from hypothesis import given
from hypothesis import strategies as st

from batchyard.jobs import (
    BUCKET_MS,
    ID_EPOCH_MS,
    ID_STRIDE,
    TRANSITIONS,
    IdSource,
    State,
    deadline_bucket,
    format_id,
    parse_id,
    runs,
)


def test_terminal_states_absorb() -> None:
    assert {before for before, _ in TRANSITIONS if before is not None and before.is_terminal} == set()
    assert {after for _, after in TRANSITIONS} == set(State)


@given(st.integers(min_value=0, max_value=(1 << 63) - 1))
def test_ids_survive_being_shown(number: int) -> None:
    shown = format_id(number)
    assert len(shown) == 16
    assert parse_id(shown) == number


def test_other_texts_are_no_ids() -> None:
    for text in ("", "12", "f" * 16, "0" * 15 + "G", "0" * 15 + "A", " " + "0" * 15, "0x" + "0" * 14, "-" + "0" * 15):
        assert parse_id(text) is None, text


def test_ids_of_one_source_rise_whatever_the_clock_does() -> None:
    source = IdSource(3)
    first = source.take(5, now_ms=ID_EPOCH_MS + 1_000)
    assert [job_id % ID_STRIDE for job_id in first] == [3] * 5
    assert list(first) == [first[0] + place * ID_STRIDE for place in range(5)]
    behind = source.take(2, now_ms=ID_EPOCH_MS)
    assert behind[0] == first[-1] + ID_STRIDE
    ahead = source.take(1, now_ms=ID_EPOCH_MS + 5_000)
    assert ahead[0] >> 22 == 5_000


def test_sources_of_different_nodes_never_meet() -> None:
    now = ID_EPOCH_MS + 7
    taken = [IdSource(node).take(100, now_ms=now) for node in (1, 2, ID_STRIDE + 3)]
    assert len({job_id for ids in taken for job_id in ids}) == 300


def test_deadlines_fall_into_the_minute_by_which_they_are_due() -> None:
    assert deadline_bucket(None) == 0
    assert [deadline_bucket(ms) for ms in (1, BUCKET_MS, BUCKET_MS + 1)] == [1, 1, 2]


def test_runs_cut_without_losing_any() -> None:
    assert [list(run) for run in runs(range(5), 2)] == [[0, 1], [2, 3], [4]]
