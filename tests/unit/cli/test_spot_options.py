"""`--spot-trace`, of `up` and of `scaler --local`: a file that is none is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from batchyard.cli.app import root
from batchyard.errors import InvalidTrace


@pytest.fixture(autouse=True)
def in_a_configured_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "batchyard.toml").write_text('[models.m]\nruntime = "a:B"\n')
    (tmp_path / "spot.csv").write_text("0,4\n60,few\n30,5\n20,3\n")


@pytest.mark.parametrize("command", ["up", "scaler --local"])
def test_a_spot_trace_that_is_none_is_refused_with_its_lines(command: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(root, [*command.split(), "--spot-trace", "spot.csv"])
    assert isinstance(done.exception, InvalidTrace)
    assert done.exception.faults == [
        "line 2: running is few; expected a number of 0 or more",
        "line 4: time is 20; expected 30 or later: rows ascend by time",
    ]
    assert not (tmp_path / ".batchyard").exists()


def test_without_local_pools_there_is_nothing_to_preempt() -> None:
    done = CliRunner().invoke(root, ["scaler", "--spot-trace", "spot.csv"])
    assert (done.exit_code, "--local" in done.output) == (2, True)
