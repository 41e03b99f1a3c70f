"""Spot capacity read from files, and what is said of those that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchyard.errors import InvalidTrace
from batchyard.spot_trace import read_spot

SHARED = Path(__file__).parents[3] / "shared/data/traces"
with_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the traces of {SHARED}, which are not there")


def write(folder: Path, text: str, *, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def spot_faults(path: Path) -> list[str]:
    with pytest.raises(InvalidTrace) as raised:
        read_spot(path)
    return raised.value.faults


def test_nodes_that_come_and_go(tmp_path: Path) -> None:
    zone = read_spot(write(tmp_path, "1000,add,n1\n1000,add,n2\n61000,remove,n1\n", name="east.csv"))
    assert (zone.zone, zone.changes) == ("east", [(0, 1), (0, 1), (60, -1)])
    bad = write(tmp_path, "1000,add,n1\n900,add,n1\n2000,remove,n7\n3000,move,n1\n")
    assert spot_faults(bad) == [
        "line 2: time_ms is 900; expected 1000 or later: rows ascend by time",
        "line 2: add of n1; expected one that is not there",
        "line 3: remove of n7; expected one that was added before",
        "line 4: 3000,move,n1; expected time_ms,add|remove,node",
    ]


def test_counts_at_dates_that_run_a_little_ahead(tmp_path: Path) -> None:
    rows = "2021-12-10, 13:08:45, 80\n2021-12-10, 13:10:45, 80\n2021-12-10, 13:09:45, 70\n2021-12-10, 13:20:45, 75\n"
    zone = read_spot(write(tmp_path, rows))
    assert zone.counts() == [80, 70, 75]
    assert [at for at, _ in zone.changes] == [0, 120, 720]
    late = write(tmp_path, rows + "2021-12-10, 13:00:00, 70\n2021-12-10, 25:00:00, 70\n")
    assert spot_faults(late) == [
        "line 5: the time is 2021-12-10, 13:00:00; expected the line before's or later: rows ascend by time",
        "line 6: 2021-12-10, 25:00:00, 70; expected date,time,running, such as 2021-12-11,11:11:30,55",
    ]


def test_counts_in_seconds_and_in_hours(tmp_path: Path) -> None:
    seconds = read_spot(write(tmp_path, "0,0\n60,4\n60,3\n90,3\n"))
    assert (seconds.counts(), seconds.seconds) == ([0, 4, 3, 3], 3600)
    assert read_spot(write(tmp_path, "0.0,0\n0.5,4\n")).changes == [(0, 0), (1800, 4)]
    assert spot_faults(write(tmp_path, "5,1\n4,1\n6,-1\n6\n")) == [
        "line 2: time is 4; expected 5 or later: rows ascend by time",
        "line 3: running is -1; expected a number of 0 or more",
        "line 4: 6; expected time,running",
    ]


def test_what_has_none_of_the_shapes(tmp_path: Path) -> None:
    for text, line, given in (("1,b,c\n", 1, "1,b,c"), ("", 1, "the file has no row"), ("a,b\n1\n", 2, "1")):
        [fault] = spot_faults(write(tmp_path, text))
        assert fault.startswith(f"line {line}: {given}; expected time_ms,add|remove,node or date,time,running or")


def test_a_heading_a_mark_of_the_encoding_and_numbers_without_end(tmp_path: Path) -> None:
    assert read_spot(write(tmp_path, "\ufeffseconds,running\n0,2\n60,1\n")).changes == [(0, 2), (60, -1)]
    assert spot_faults(write(tmp_path, "0,2\n60,inf\n")) == ["line 2: running is inf; expected a number of 0 or more"]


@with_shared_data
def test_public_traces_of_spot_capacity() -> None:
    files = [file for file in (SHARED / "bamboo").iterdir() if file.name != "LICENSE"]
    most = {zone.zone: max(zone.counts()) for zone in map(read_spot, files)}
    assert len(most) == 7
    assert (most["g4dn-trace"], most["a100x1-east1b"], most["v100x1-east1c"]) == (24, 64, 80)
