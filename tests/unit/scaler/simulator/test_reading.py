"""Traces read from files, and what is said of those that are none."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from batchyard.errors import InvalidTrace
from batchyard_scaler.simulator.reading import Rates, read_jobs, read_spot
from batchyard_scaler.simulator.trace import Trace

SHARED = Path(__file__).parents[5] / "shared/data/traces"
with_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the traces of {SHARED}, which are not there")


def write(folder: Path, text: str, *, name: str = "trace.csv") -> Path:
    path = folder / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def faults(path: Path) -> list[str]:
    with pytest.raises(InvalidTrace) as raised:
        read_jobs(path)
    return raised.value.faults


def spot_faults(path: Path) -> list[str]:
    with pytest.raises(InvalidTrace) as raised:
        read_spot(path)
    return raised.value.faults


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz"])
def test_jobs_a_line(tmp_path: Path, name: str) -> None:
    text = "arrive_seconds,work_seconds,deadline_seconds,model,tolerant\n0,30,900,a@1,1\n\n5.5,20,,b@1,false\n"
    trace = read_jobs(write(tmp_path, text, name=name))
    assert isinstance(trace, Trace)
    assert trace.arrive_at.tolist() == [0, 5.5]
    assert trace.due_at.tolist() == [900, float("inf")]
    assert [trace.models[index] for index in trace.model] == ["a@1", "b@1"]
    assert trace.is_tolerant.tolist() == [True, False]
    assert trace.seconds == 6.5


def test_all_faults_with_their_lines(tmp_path: Path) -> None:
    rows = ["0,30,1", "7,x,1", "5,-1,1", "9,30,1", "8,30,1", "1,2", "10,1,maybe", "nan,1,1"]
    path = write(tmp_path, "\n".join(["arrive_seconds,work_seconds,tolerant", *rows]))
    assert faults(path) == [
        "line 3: work_seconds is x; expected a number of 1e-09 or more",
        "line 4: work_seconds is -1; expected a number of 1e-09 or more",
        "line 6: arrives at 8 s; expected 9 s or later: rows ascend by arrive_seconds",
        "line 7: 2 fields; expected 3, as the heading has",
        "line 8: tolerant is maybe; expected one of 1, 0, true, false",
        "line 9: arrive_seconds is nan; expected a number of 0 or more",
    ]


def test_of_many_faults_the_first_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    found = faults(write(tmp_path, "arrive_seconds,work_seconds\n" + "a,1\n" * 25))
    assert len(found) == 11
    assert found[-1] == "and 15 more"


def test_another_heading_and_no_rows(tmp_path: Path) -> None:
    assert faults(write(tmp_path, "when,what\n1,2\n"))[0].startswith("line 1: the heading is when,what; expected arr")
    assert faults(write(tmp_path, ""))[0].startswith("line 1: the heading is missing")
    assert faults(write(tmp_path, "arrive_seconds,work_seconds\n")) == ["line 2: the file ends; expected a row"]


def test_what_is_no_file_of_text(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as CSV" in faults(path)[0]
    assert "cannot be read as CSV" in faults(tmp_path / "absent.csv")[0]


def test_requests_at_dates_and_times(tmp_path: Path) -> None:
    head = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    good = write(tmp_path, head + "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:05.9799600,1,1\n")
    trace = read_jobs(good)
    assert isinstance(trace, Trace)
    assert trace.arrive_at.tolist() == pytest.approx([0, 2])
    assert np.isnan(trace.work_seconds).all()
    bad = write(tmp_path, head + "2023-11-16 18:17:03,1,1\n2023-11-16 18:17:02,1,1\nyesterday,1,1\n")
    assert faults(bad) == [
        "line 3: the time is 2023-11-16 18:17:02; expected the line before's or later: rows ascend by time",
        "line 4: the time is 'yesterday'; expected a date and time such as 2023-11-16 18:17:03.979",
    ]


def test_rates_and_a_gap_in_them(tmp_path: Path) -> None:
    head = "model,t_seconds,requests_per_second,active_clients\n"
    rates = read_jobs(write(tmp_path, head + "a,0,1.5,3\na,600,2.5,3\nb,0,1,1\nb,600,1,1\n"))
    assert isinstance(rates, Rates)
    assert rates.step_seconds == 600
    assert {model: values.tolist() for model, values in rates.by_model.items()} == {"a": [1.5, 2.5], "b": [1, 1]}
    gap = write(tmp_path, head + "a,0,1,1\na,600,1,1\na,1800,1,1\nb,0,1,1\n")
    assert faults(gap) == ["line 4: t_seconds of a is 1800; expected 1200: one row a step, without gaps"]


def test_nodes_that_come_and_go(tmp_path: Path) -> None:
    zone = read_spot(write(tmp_path, "1000,add,n1\n1000,add,n2\n61000,remove,n1\n", name="east.csv"))
    assert (zone.zone, zone.at_seconds.tolist(), zone.changes.tolist()) == ("east", [0, 0, 60], [1, 1, -1])
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
    assert zone.counts().tolist() == [80, 70, 75]
    assert zone.at_seconds.tolist() == [0, 120, 720]
    late = write(tmp_path, rows + "2021-12-10, 13:00:00, 70\n2021-12-10, 25:00:00, 70\n")
    assert spot_faults(late) == [
        "line 5: the time is 2021-12-10, 13:00:00; expected the line before's or later: rows ascend by time",
        "line 6: 2021-12-10, 25:00:00, 70; expected date,time,running, such as 2021-12-11,11:11:30,55",
    ]


def test_counts_in_seconds_and_in_hours(tmp_path: Path) -> None:
    seconds = read_spot(write(tmp_path, "0,0\n60,4\n60,3\n90,3\n"))
    assert (seconds.counts().tolist(), seconds.seconds) == ([0, 4, 3, 3], 3600)
    assert read_spot(write(tmp_path, "0.0,0\n0.5,4\n")).at_seconds.tolist() == [0, 1800]
    assert spot_faults(write(tmp_path, "5,1\n4,1\n6,-1\n6\n")) == [
        "line 2: time is 4; expected 5 or later: rows ascend by time",
        "line 3: running is -1; expected a number of 0 or more",
        "line 4: 6; expected time,running",
    ]
    assert spot_faults(write(tmp_path, "a,b,c\n"))[0].startswith("line 1: a,b,c; expected time_ms,add|remove,node or")
    assert spot_faults(write(tmp_path, ""))[0].startswith("line 1: the file is empty")


@with_shared_data
def test_public_traces_of_jobs() -> None:
    code = read_jobs(SHARED / "azure-llm-2023/AzureLLMInferenceTrace_code.csv.gz")
    rates = read_jobs(SHARED / "servegen/servegen_rate_600s_by_model.csv.gz")
    assert isinstance(code, Trace)
    assert isinstance(rates, Rates)
    assert len(code) == 8_819
    assert {model: len(steps) for model, steps in rates.by_model.items()} == {
        "m-large": 2016,
        "m-mid": 2016,
        "m-small": 2016,
        "mm-image": 144,
        "deepseek-r1": 144,
    }


@with_shared_data
def test_public_traces_of_spot_capacity() -> None:
    files = [file for file in (SHARED / "bamboo").iterdir() if file.name != "LICENSE"]
    most = {zone.zone: int(zone.counts().max()) for zone in map(read_spot, files)}
    assert len(most) == 7
    assert (most["g4dn-trace"], most["a100x1-east1b"], most["v100x1-east1c"]) == (24, 64, 80)
