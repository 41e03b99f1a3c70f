"""`batchyard simulate`, from its flags to its reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from batchyard.cli.app import root
from batchyard.errors import BatchyardError, InvalidRequest, InvalidTrace
from batchyard_scaler.simulator.queues import START_MARGIN

JOBS = "arrive_seconds,work_seconds,deadline_seconds,model\n" + "".join(
    f"{at},30,900,{'ab'[at // 10 % 2]}@1\n" for at in range(0, 3600, 10)
)
RATES = "model,t_seconds,requests_per_second\n" + "".join(f"m,{at},0.1\n" for at in range(0, 6000, 600))


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs.csv").write_text(JOBS)
    (tmp_path / "rates.csv").write_text(RATES)
    return tmp_path


def simulate(*arguments: str) -> Result:
    return CliRunner().invoke(root, ["simulate", *arguments])


def test_a_report_with_pictures(tmp_path: Path) -> None:
    done = simulate("rates.csv", "--policy", "batchyard", "--policy", "fixed:5", "--cold-start", "60", "--out", "out")
    assert done.exit_code == 0, done.output
    assert "# m: " in done.stdout
    assert "Clairvoyant bound: $" in done.stdout
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert [row["contender"] for row in report["measures"]] == ["batchyard", "fixed at 5"]
    assert report["assumptions"]["deadlines"] == "900 s and 14,400 s"
    assert report["measures"][0]["lost_jobs"] == 0
    assert (tmp_path / "out/report.md").read_text() in done.stdout
    for picture in ("replicas.png", "costs.png"):
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")


def test_a_pool_for_each_model() -> None:
    done = simulate("jobs.csv", "--policy", "fixed:2", "--apart", "--cold-start", "60")
    assert done.exit_code == 0, done.output
    assert "| fixed at 2 | $4." in done.stdout


def test_demand_is_scaled_and_prices_are_taken() -> None:
    done = simulate("jobs.csv", "--policy", "fixed:8", "--demand", "6", "--price", "3", "--no-bound")
    assert "a mean demand of 6.0 replicas" in done.stdout
    assert "price of on-demand $3 an hour" in done.stdout


def test_spot_zones_make_a_spot_pool(tmp_path: Path) -> None:
    (tmp_path / "zone.csv").write_text("0,9\n3000,3\n3600,9\n")
    done = simulate("rates.csv", "--policy", "batchyard", "--spot", "zone.csv", "--cold-start", "60")
    assert done.exit_code == 0, done.output
    assert "price of spot $0.35 an hour" in done.stdout


def test_starts_are_drawn_around_their_median(tmp_path: Path) -> None:
    flags = ("rates.csv", "--policy", "fixed:5", "--no-bound", "--cold-start", "90", "--cold-start-p50")
    assert simulate(*flags, "30", "--out", "out").exit_code == 0
    (found,) = json.loads((tmp_path / "out/report.json").read_text())["measures"]
    assert 5 * 5 < found["cold_hours"] * 3600 < 5 * 180
    assert found["cold_hours"] * 3600 != pytest.approx(5 * 90)
    assert "above --cold-start" in simulate(*flags, "91").output


def test_the_pools_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "batchyard.toml").write_text(
        '[models.a]\nruntime = "x:Y"\n[models.b]\nruntime = "x:Y"\n'
        '[pools.first]\nmodels = ["a"]\nmax = 4\nprice_per_hour = 2.0\n'
        '[pools.second]\nmodels = ["b"]\nmax = 4\nprice_per_hour = 1.0\n'
    )
    done = simulate("jobs.csv", "--pools", "--policy", "fixed:2")
    assert done.exit_code == 0, done.output
    assert "price of first $2 an hour" in done.stdout
    assert "| fixed at 2 | $6." in done.stdout


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for zone in ("zone.csv", "other/zone.csv"):
        (tmp_path / zone).write_text("0,9\n")
    assert "neither a file nor one of diurnal, bursts, bulk, sparse" in simulate("absent.csv").output
    assert "two of them have the same name" in simulate("bulk", "--spot", "zone.csv", "--spot", "other/zone.csv").output
    assert "goes without --spot" in simulate("jobs.csv", "--apart", "--spot", "zone.csv").output
    for name in ("x:1", "keda:0", "fixed:1.5", "keda:²"):
        assert "there are batchyard, fixed:N" in simulate("bulk", "--policy", name).output
    (tmp_path / "bad.csv").write_text("arrive_seconds,work_seconds\n1,-1\n")
    assert _error(simulate("bad.csv"), InvalidTrace).startswith("bad.csv is no trace that can be replayed:\n  - line 2")
    assert _error(simulate("rates.csv", "--model", "n"), InvalidRequest) == "rates.csv has no model n; it has m."
    assert "has no pools" in _error(simulate("rates.csv", "--pools"), InvalidRequest)


def _error(done: Result, kind: type[BatchyardError]) -> str:
    assert isinstance(done.exception, kind)
    return done.exception.message


def test_of_requests_the_work_and_the_deadlines_are_flags(tmp_path: Path) -> None:
    rows = "".join(f"2023-11-16 18:{minute:02d}:00,1,1\n" for minute in range(30))
    (tmp_path / "requests.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    done = simulate("requests.csv", "--job-seconds", "45", "--deadline", "600", "--policy", "fixed:2")
    assert "mean work of a job 45.0 s; deadlines 600 s" in done.stdout
    assert done.stderr == ""
    done = simulate("requests.csv", "--policy", "fixed:2", "--no-bound")
    assert (
        "requests.csv has no column of the jobs' work, so each takes 30 s: --job-seconds says otherwise" in done.stderr
    )


def test_columns_are_named_where_they_are_not_found(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("When,Took\n0,10\n60,20\n")
    flags = ("--policy", "fixed:1", "--no-bound", "--column")
    assert "mean work of a job 15.0 s" in simulate("own.csv", *flags, "arrive=When", "--column", "work=Took").stdout
    assert "allowed is NAME=HEADING" in simulate("own.csv", *flags, "begin=When").output
    assert "allowed is NAME=HEADING" in simulate("own.csv", *flags, "arrive").output


def test_deadlines_that_no_fleet_meets_leave_the_bound_out(tmp_path: Path) -> None:
    (tmp_path / "tight.csv").write_text("arrive_seconds,work_seconds,deadline_seconds\n0,900,10\n0,900,10\n0,900,10\n")
    done = simulate("tight.csv", "--policy", "fixed:1", "--max", "1")
    assert "No fleet within the pools' limits meets every deadline" in done.stdout
    assert "| fixed at 1 |" in done.stdout


def test_ctrl_c_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("batchyard_scaler.simulator.command.compare", interrupted)
    assert simulate("bulk", "--out", "out").exit_code == 1
    assert not (tmp_path / "out").exists()


def test_the_margin_of_a_latest_start_is_the_one_of_production() -> None:
    from batchyard import submission

    assert submission.START_MARGIN == START_MARGIN
