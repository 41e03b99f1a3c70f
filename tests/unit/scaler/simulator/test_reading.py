"""Traces read from files, and what is said of those that are none."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from batchyard.errors import InvalidTrace
from batchyard_scaler.simulator.reading import Rates, read_jobs
from batchyard_scaler.simulator.trace import Trace

EXAMPLE = "2023-11-16 18:17:03.979"
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
        "line 3: work_seconds is x; expected a number above 0",
        "line 4: work_seconds is -1; expected a number above 0",
        "line 6: arrive_seconds is 8; expected that of the row before or later: rows ascend",
        "line 7: 2 fields; expected 3, as the heading has",
        "line 8: tolerant is maybe; expected one of 1, 0, true, false, yes, no",
        "line 9: arrive_seconds is nan; expected a number of 0 or more, as in the rows before",
    ]


def test_of_many_faults_the_first_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    found = faults(write(tmp_path, "arrive_seconds,work_seconds\n" + "a,1\n" * 25))
    assert len(found) == 11
    assert found[-1] == "and 15 more"


def test_another_heading_and_no_rows(tmp_path: Path) -> None:
    expected = "expected a column of arrivals, named arrive_seconds, timestamp or the like"
    assert faults(write(tmp_path, "when,what\n1,2\n"))[0].startswith(f"line 1: the heading is when,what; {expected}")
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
        "line 3: timestamp is 2023-11-16 18:17:02; expected that of the row before or later: rows ascend",
        f"line 4: timestamp is yesterday; expected a date and time such as {EXAMPLE}, as in the rows before",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffmodel,work_ms,Arrival Time,other\na,1500,0,x\nb,2500,2,x\n",
        "timestamp;duration;model_name\n2026-01-05T10:00:00Z;1.5;a\n2026-01-05T11:00:02+01:00;2.5;b\n",
        "t\trun_time_s\tmodel\n1767607200\t1.5\ta\n1767607202\t2.5\tb\n",
        "created_at,runtime,model\r\n1767607200000,1.5,a\r\n1767607202000,2.5,b\r\n",
        "submitted_at,work_ns,model\n1767607200000000000,1500000000,a\n1767607202000000000,2500000000,b\n",
        "arrival_ms,service_time_seconds,model\n0,1.5,a\n2000,2.5,b\n",
    ],
)
def test_jobs_as_others_write_them(tmp_path: Path, text: str) -> None:
    trace = read_jobs(write(tmp_path, text))
    assert isinstance(trace, Trace)
    assert trace.arrive_at.tolist() == pytest.approx([0, 2])
    assert trace.work_seconds.tolist() == [1.5, 2.5]
    assert (trace.models, trace.model.tolist()) == (("a", "b"), [0, 1])
    assert round(trace.begins_at_seconds, 3) in {0.0, 1_767_607_200.0}


def test_a_gzipped_trace_by_any_name_and_one_that_is_cut_off(tmp_path: Path) -> None:
    zipped = gzip.compress(b"arrive_seconds,work_seconds\n" + b"".join(b"%d,1\n" % at for at in range(999)))
    path = tmp_path / "trace.csv"
    path.write_bytes(zipped)
    trace = read_jobs(path)
    assert isinstance(trace, Trace)
    assert len(trace) == 999
    path.write_bytes(zipped[:-200])
    assert "cannot be read as CSV" in faults(path)[0]


def test_columns_by_names_of_their_own(tmp_path: Path) -> None:
    path = write(tmp_path, "When,Took\n3,1\n5,1\n")
    trace = read_jobs(path, named={"arrive": "when", "work": "Took"})
    assert isinstance(trace, Trace)
    assert trace.arrive_at.tolist() == [3, 5]
    with pytest.raises(InvalidTrace, match="the heading is When,Took; expected a column Class"):
        read_jobs(path, named={"arrive": "when", "model": "Class"})


def test_times_of_two_kinds(tmp_path: Path) -> None:
    path = write(tmp_path, "arrive_seconds\n0\n2026-01-05T10:00:00Z\n")
    assert faults(path) == [
        "line 3: arrive_seconds is 2026-01-05T10:00:00Z; expected a number of 0 or more, as in the rows before"
    ]


def test_rates_and_a_gap_in_them(tmp_path: Path) -> None:
    head = "model,t_seconds,requests_per_second,active_clients\n"
    rates = read_jobs(write(tmp_path, head + "a,0,1.5,3\na,600,2.5,3\nb,0,1,1\nb,600,1,1\n"))
    assert isinstance(rates, Rates)
    assert rates.step_seconds == 600
    assert {model: values.tolist() for model, values in rates.by_model.items()} == {"a": [1.5, 2.5], "b": [1, 1]}
    gap = write(tmp_path, head + "a,0,1,1\na,600,1,1\na,1800,1,1\nb,0,1,1\n")
    assert faults(gap) == ["line 4: t_seconds of a is 1800; expected 1200: one row a step, without gaps"]
    back = write(tmp_path, "t_seconds,requests_per_second,model\n600,1,a\n0,inf,a\n0,1,a\n")
    assert faults(back) == ["line 3: requests_per_second is inf; expected a number of 0 or more"]
    back = write(tmp_path, "t_seconds,requests_per_second,model\n600,1,a\n0,1,a\n")
    assert faults(back) == ["line 3: t_seconds is 0; expected more than 600: rows ascend by time"]


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
