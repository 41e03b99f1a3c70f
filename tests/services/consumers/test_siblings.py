"""Several devices on one machine, one command: a stand-in lists the GPUs, everything else is real."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.services.consumers.yard import Yard, result, until, yard

MODELS = """
[models.lengths]
runtime = "batchyard_consumers.samples:Lengths"
"""
POOL = """
[pools.gpu]
models = ["lengths"]
drain_seconds = 5
"""
SMI = """#!/bin/sh
echo "GPU 0: NVIDIA A100 (UUID: GPU-0)"
echo "GPU 1: NVIDIA A100 (UUID: GPU-1)"
echo "  MIG 3g.20gb     Device  0: (UUID: MIG-1a)"
"""


@pytest.fixture
def place(tmp_path: Path, valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Yard]:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(SMI)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with yard(tmp_path, models=MODELS, broker_url=valkey_url, extra=POOL) as place:
        yield place


def consumers_of(process: int) -> dict[str, psutil.Process]:
    """By the device that each sees."""
    found = {}
    for child in psutil.Process(process).children():
        with suppress(psutil.Error):  # it ends just now
            found[child.environ()["CUDA_VISIBLE_DEVICES"]] = child
    return found


def test_one_command_serves_every_device_and_drains_them_all(place: Yard) -> None:
    worker = place.start("gpu")
    place.ready(2)
    before = consumers_of(worker.pid)
    assert sorted(before) == ["GPU-0", "MIG-1a"]
    assert {info.pid for info in place.store.consumers()} == {child.pid for child in before.values()}

    before["MIG-1a"].send_signal(signal.SIGKILL)
    until(lambda: consumers_of(worker.pid).get("MIG-1a") not in {None, before["MIG-1a"]}, yard=place)
    assert consumers_of(worker.pid)["GPU-0"] == before["GPU-0"]
    views = place.finish(place.submit("lengths@1", ["x" * n for n in range(1, 50)]))
    assert [result(view)["length"] for view in views] == list(range(1, 50))

    worker.terminate()
    assert worker.wait(20) == 0
    assert not any(child.is_running() for child in before.values())
