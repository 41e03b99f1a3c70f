"""The rows of `make bench-gpu`, on the CPU and with a few texts: what they measure is not judged here."""

import re

import pytest
import torch

from tests.benchmarks import gpu


def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["gpu", *arguments])
    status = gpu.main()
    return status, *capfd.readouterr()


def test_a_machine_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, out, errors = run(monkeypatch, capfd)
    assert (status, out) == (2, "")
    assert errors == "make bench-gpu needs a CUDA device, and torch finds none on this machine\n"


def figures(out: str) -> dict[str, float]:
    """What is measured, by name, of the lines that say what is wanted."""
    return {line[:66].strip(): float(line[66:74]) for line in out.splitlines() if " wanted: " in line}


@pytest.mark.timeout(300)
def test_a_dtype_s_row_measures_speed_padding_and_likeness(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    status, out, errors = run(monkeypatch, capfd, "float32", "--device", "cpu", "--texts", "48", "--rounds", "1")
    assert status == 0, errors
    found = figures(out)
    assert found.keys() == {"over encode in float32", "padding waste", "R in float32, median"}
    assert 0 <= found["padding waste"] < 1
    [cosine] = re.findall(r"least cosine with its embeddings ([\d.]+)", out)
    assert float(cosine) > 0.9999
    [busy] = re.findall(r"device busy ([\d.]+)", out)
    assert 0 < float(busy) <= 1


@pytest.mark.timeout(300)
def test_draining_computes_nothing_again(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, errors = run(monkeypatch, capfd, "drain", "--device", "cpu")
    assert status == 0, errors
    found = figures(out)
    assert len(found) == 3
    assert found["drain: jobs computed again that were persisted"] == 0
