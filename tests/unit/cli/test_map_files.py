"""The files of `batchyard map`."""

import io
from pathlib import Path

import click
import pytest

from batchyard.cli.map_files import (
    Inputs,
    MapProgress,
    Mark,
    Seen,
    load_progress,
    progress_path,
    read_results,
    save_progress,
    survey,
)


def inputs(text: bytes, *, as_text: bool = False, expected: Mark | None = None) -> list[object]:
    return list(Inputs(io.BytesIO(text), name="in.jsonl", text=as_text, expected=expected))


def mark_of(text: bytes, *, as_text: bool = False) -> Mark:
    return survey(io.BytesIO(text), name="in.jsonl", text=as_text)


def test_a_line_is_an_input_and_blank_ones_are_none() -> None:
    assert inputs(b'"a"\n\n{"b": [1]}\r\n  \n3') == ["a", {"b": [1]}, 3]


def test_lines_may_be_plain_text() -> None:
    assert inputs("größe\n{not json\n".encode(), as_text=True) == ["größe", "{not json"]


def test_a_bad_line_is_named() -> None:
    with pytest.raises(click.ClickException, match=r"in\.jsonl, line 3: .*--text"):
        inputs(b'"a"\n"b"\nnot json\n')
    with pytest.raises(click.ClickException, match="line 1"):
        inputs(b"\xff\xfe\n", as_text=True)


def test_a_survey_reads_it_all() -> None:
    assert mark_of(b"1\n\n2\n3").inputs == 3
    with pytest.raises(click.ClickException, match="line 2"):
        mark_of(b"1\noops\n")


def test_other_inputs_have_another_mark_wherever_they_differ() -> None:
    lines = [b'{"n": %d, "pad": "%s"}' % (n, b"x" * 1000) for n in range(4000)]
    whole = mark_of(b"\n".join(lines))

    for place in (0, 2000, 3999):
        assert mark_of(b"\n".join([*lines[:place], lines[place].replace(b"x", b"y", 1), *lines[place + 1 :]])) != whole
    assert mark_of(b"\n".join(lines[:-1])) != whole
    assert mark_of(b"\n".join(lines), as_text=True) != whole
    assert mark_of(b"\n\n".join(lines) + b"\r\n") == whole


def test_what_an_earlier_run_began_with_may_go_on() -> None:
    assert inputs(b"1\n2\n3\n", expected=mark_of(b"1\n2\n")) == [1, 2, 3]
    assert inputs(b"1\n2\n", expected=mark_of(b"1\n2\n")) == [1, 2]


@pytest.mark.parametrize(
    ("given", "how"),
    [(b"1\n7\n3\n4\n", "its first 3 inputs are others"), (b"1\n2\n", "it has 2 inputs, and there were 3"), (b"", "0")],
)
def test_others_are_refused(given: bytes, how: str) -> None:
    taken = []

    def take() -> None:
        for value in Inputs(io.BytesIO(given), name="in.jsonl", text=False, expected=mark_of(b"1\n2\n3\n")):
            taken.append(value)  # noqa: PERF402  what came before the error counts

    with pytest.raises(click.ClickException, match=rf"in\.jsonl is not what this run began with: .*{how}"):
        take()
    assert len(taken) <= 2


def test_a_mark_is_of_what_was_taken() -> None:
    source = Inputs(io.BytesIO(b"1\n2\n3\n"), name="in.jsonl", text=False)
    values = iter(source)

    next(values), next(values)

    assert source.mark() == mark_of(b"1\n2\n")


def test_progress_is_kept_beside_out(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert load_progress(out) is None

    progress = MapProgress(model="m", key="k", mark=mark_of(b"1\n"), cursor=7)
    save_progress(out, progress)

    assert load_progress(out) == progress
    progress_path(out).write_text("{")
    with pytest.raises(click.ClickException, match="damaged"):
        load_progress(out)


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    whole = b'{"index":4,"result":1}\n{"index":0,"error":{"code":"x"}}\n'
    out.write_bytes(whole + b'{"index":5,"resu')

    seen = read_results(out)

    assert out.read_bytes() == whole
    assert (seen.count, seen.failed) == (2, 1)
    assert not seen.add(4)
    assert seen.add(5)


def test_a_torn_line_that_reads_as_json_is_cut_off_too(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(b'{"index":4,"result":1}')

    assert read_results(out).count == 0
    assert out.read_bytes() == b""


def test_indexes_are_seen_once() -> None:
    seen = Seen()

    assert [seen.add(index) for index in (0, 9, 1_000_000, 9, 0)] == [True, True, True, False, False]
    assert seen.count == 3


def test_indexes_that_are_missing() -> None:
    seen = Seen()
    for index in (0, 1, 3, 9):
        seen.add(index)

    assert list(seen.missing(12)) == [2, 4, 5, 6, 7, 8, 10, 11]
    assert list(seen.missing(10_000))[-1] == 9999
    assert list(Seen().missing(2)) == [0, 1]
