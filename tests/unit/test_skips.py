"""The rule that CI skips nothing, tried on a run of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.skips import ALLOWED_SKIPS, read_allowed

REPOSITORY = Path(__file__).parents[2]
SAMPLE = """
import pytest

pytest.importorskip("sys")

@pytest.mark.skip(reason="no such server")
def test_skipped(): ...

@pytest.mark.xfail(strict=True)
def test_expected_failure(): raise AssertionError

def test_passes(): ...
"""


def run_sample(folder: Path, *, ci: bool) -> str:
    sample = folder / "test_sample.py"
    sample.write_text(SAMPLE)
    (folder / "conftest.py").write_text("from tests.conftest import *")
    options = ["-p", "no:cacheprovider", "--confcutdir", str(folder), "-rA", str(sample)]
    environment = {**os.environ, "CI": "true" if ci else "", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "pytest", "-c", str(REPOSITORY / "pyproject.toml"), *options]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True).stdout


def test_on_a_laptop_a_skip_is_a_skip(tmp_path: Path) -> None:
    assert "1 passed, 1 skipped, 1 xfailed" in run_sample(tmp_path, ci=False)


def test_in_ci_a_skip_fails_with_its_reason(tmp_path: Path) -> None:
    output = run_sample(tmp_path, ci=True)
    assert "1 passed, 1 xfailed, 1 error" in output
    assert "does not name it: Skipped: no such server" in output


def test_allowed_patterns_match_whole_ids_literally_but_for_the_star() -> None:
    (pattern,) = read_allowed("# a comment\n\ntests/a.py::test[x*] # the reason\n")
    assert pattern.fullmatch("tests/a.py::test[x-1]")
    assert not pattern.fullmatch("tests/a.py::testx")
    assert not pattern.fullmatch("tests/a.py::test[x-1]more")


def test_an_allowed_skip_without_a_reason_is_refused() -> None:
    with pytest.raises(ValueError, match="line 1: no reason"):
        read_allowed("tests/a.py::test\n")


def test_the_committed_list_reads() -> None:
    read_allowed(ALLOWED_SKIPS.read_text())
