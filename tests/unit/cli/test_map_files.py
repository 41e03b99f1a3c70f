"""The files of `batchyard map`."""

import io
from pathlib import Path

import click
import pytest

from batchyard.cli.map_files import (
    MapProgress,
    Seen,
    count_inputs,
    fingerprint,
    load_progress,
    progress_path,
    read_inputs,
    read_results,
    save_progress,
)


def inputs(text: bytes, *, as_text: bool = False) -> list[object]:
    return list(read_inputs(io.BytesIO(text), name="in.jsonl", text=as_text))


def test_a_line_is_an_input_and_blank_ones_are_none() -> None:
    assert inputs(b'"a"\n\n{"b": [1]}\r\n  \n3') == ["a", {"b": [1]}, 3]


def test_lines_may_be_plain_text() -> None:
    assert inputs("größe\n{not json\n".encode(), as_text=True) == ["größe", "{not json"]


def test_a_bad_line_is_named() -> None:
    with pytest.raises(click.ClickException, match=r"in\.jsonl, line 3: .*--text"):
        inputs(b'"a"\n"b"\nnot json\n')
    with pytest.raises(click.ClickException, match="line 1"):
        inputs(b"\xff\xfe\n", as_text=True)


def test_counting_reads_it_all(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("1\n\n2\n3")
    assert count_inputs(path, text=False) == 3
    path.write_text("1\noops\n")
    with pytest.raises(click.ClickException, match="line 2"):
        count_inputs(path, text=False)


def test_another_content_has_another_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("1\n2\n")
    before = fingerprint(path)
    assert fingerprint(path) == before
    path.write_text("1\n3\n")
    assert fingerprint(path) != before


def test_progress_is_kept_beside_out(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert load_progress(out) is None

    save_progress(out, MapProgress(model="m", source="s", key="k", cursor=7))

    assert load_progress(out) == MapProgress(model="m", source="s", key="k", cursor=7)
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
