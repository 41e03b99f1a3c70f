import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from batchyard.cli.invocation import Invocation
from batchyard.settings import PoolSettings
from batchyard.store import migrate
from batchyard.store.base import ModelConfig
from batchyard.store.open import database_url, open_store
from batchyard_consumers.command import check, worker

CONFIG = """
[models.good]
runtime = "batchyard_consumers.samples:NoOp"
[models.bad]
runtime = "nowhere.at_all:Model"
[pools.local]
models = ["good", "bad"]
"""
WEIGHTY = """
import torch
from batchyard import Model

class Heavy(Model):
    def load(self, device):
        self.weights = torch.ones(16 * 2**20, device=device)
    def forward(self, items):
        return items
"""


def invocation(folder: Path, config: str = CONFIG) -> Invocation:
    (folder / "batchyard.toml").write_text(config)
    return Invocation(config=str(folder / "batchyard.toml"))


def test_check_says_which_models_serve_and_publishes_what_it_found(tmp_path: Path) -> None:
    called = invocation(tmp_path)
    state = called.settings().state_dir
    migrate.upgrade(database_url("sqlite", state_dir=state))
    done = CliRunner().invoke(check, [], obj=called)
    assert done.exit_code == 1, done.output
    assert "good@1: ok on" in done.output
    assert "bad@1: FAILED: bad@1: cannot import nowhere.at_all:Model" in done.output
    store = open_store("sqlite", state_dir=state)
    known = {version.model: version for version in store.models()}
    store.close()
    assert known["good"].digest is not None
    assert known["bad"].load_error is not None


@pytest.mark.parametrize("known", ["loaded once", "a consumer serves"])
def test_a_failed_check_does_not_contradict_those_who_serve(tmp_path: Path, known: str) -> None:
    called = invocation(tmp_path)
    state = called.settings().state_dir
    migrate.upgrade(database_url("sqlite", state_dir=state))
    store = open_store("sqlite", state_dir=state)
    try:
        [bad] = store.sync_models([ModelConfig(model="bad", version="1", runtime="nowhere.at_all:Model")])
        if known == "loaded once":
            store.report_version(bad.id, digest="d", input_schema={}, cost_unit="bytes", load_seconds=1.0)
        else:
            queue_ids = list(bad.queue_ids.values())
            store.register_consumer(
                pool="gpu", host="h", pid=1, device="cuda", capacity="spot", queue_ids=queue_ids, lease_ms=30_000
            )
        done = CliRunner().invoke(check, ["--model", "bad"], obj=called)
        assert (done.exit_code, "bad@1: FAILED" in done.output) == (1, True)
        assert {version.model: version.load_error for version in store.models()}["bad"] is None
    finally:
        store.close()


def test_check_works_without_a_database(tmp_path: Path) -> None:
    done = CliRunner().invoke(check, ["--model", "good"], obj=invocation(tmp_path))
    assert done.exit_code == 0, done.output
    assert "nothing is published" in done.output


def test_check_says_what_memory_was_predicted_and_measured(tmp_path: Path) -> None:
    (tmp_path / "weighty.py").write_text(WEIGHTY)
    called = invocation(tmp_path, '[models.heavy]\nruntime = "weighty:Heavy"\n')
    done = CliRunner().invoke(check, ["--device", "cpu"], obj=called)
    assert done.exit_code == 0, done.output
    told = re.search(r"weights of 64.0 MiB, memory of 64.0 MiB predicted and ([\d.]+) MiB measured", done.output)
    assert told is not None, done.output
    assert float(told[1]) == pytest.approx(64.0, rel=0.25)


BROKEN = """
import sys

from batchyard import InvalidInput, Model


class Measured(Model):
    input_schema = {"type": "string", "examples": ["one two", "three"]}
    cost_unit = "words"

    def cost(self, item):
        return len(item.split())

    def forward(self, items):
        return list(items)


class Empty(Model):
    pass


class Quits(Measured):
    def load(self, device):
        sys.exit("no licence")


class Refuses(Measured):
    def preprocess(self, inputs, params):
        return [InvalidInput("too short") for _ in inputs]


class Misdescribed(Measured):
    input_schema = {"type": "words"}
"""
REASONS = {
    "Empty": "must define forward",
    "Quits": "cannot load: SystemExit: no licence",
    "Refuses": "its first batch fails: too short",
    "Misdescribed": "its input_schema is no JSON Schema",
    "Missing": "cannot import checked_models:Missing: AttributeError",
}


def test_check_says_what_a_model_takes_and_why_others_cannot_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checked_models.py").write_text(BROKEN)
    (tmp_path / "cut.pt").write_bytes(b"PK")
    monkeypatch.syspath_prepend(str(tmp_path))
    named = [f'[models.{name.lower()}]\nruntime = "checked_models:{name}"\n' for name in ("Measured", *REASONS)]
    cut = f'[models.cut]\nruntime = "torchscript"\nsource = "{tmp_path}/cut.pt"\noptions.inputs.x.shape = [2]\n'
    called = invocation(tmp_path, "".join(named) + cut)
    for name, words in (REASONS | {"cut": f"cut off or damaged: {tmp_path}/cut.pt (2 bytes)"}).items():
        done = CliRunner().invoke(check, ["--model", name.lower()], obj=called)
        assert done.exit_code == 1
        assert f"{name.lower()}@1: FAILED: " in done.output
        assert words in done.output
    done = CliRunner().invoke(check, ["--model", "measured"], obj=called)
    assert done.exit_code == 0, done.output
    for words in ("words a batch", "µs a unit", "words/s", "jobs/s of"):
        assert words in done.output


def test_check_names_what_there_is(tmp_path: Path) -> None:
    done = CliRunner().invoke(check, ["--model", "other"], obj=invocation(tmp_path))
    assert done.exit_code == 2
    assert "bad@1, good@1" in done.output or "good@1, bad@1" in done.output


@pytest.fixture
def consumers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The torch device and CUDA_VISIBLE_DEVICES of each consumer that would have run here, on a machine with two
    GPUs."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\nfor n in 0 1; do echo "GPU $n: NVIDIA L4 (UUID: GPU-$n)"; done\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    found: list[tuple[str, str]] = []

    def run(_settings: object, pool: PoolSettings, **_: object) -> None:
        found.append((pool.device, os.environ["CUDA_VISIBLE_DEVICES"]))

    monkeypatch.setattr("batchyard_consumers.worker.run_worker", run)
    monkeypatch.setattr("batchyard.store.open.open_store", lambda *_, **__: None)
    monkeypatch.setattr("batchyard.telemetry.configure_logging", lambda _: None)
    return found


@pytest.mark.parametrize(
    ("device", "arguments", "found"),
    [
        ("cuda:0", [], ("cuda:0", "GPU-1")),
        ("cuda:GPU-0", [], ("cuda:0", "GPU-0")),
        ("cpu", [], ("cpu", "1,0")),
        ("cuda", ["--device", "cuda:1"], ("cuda:1", "1,0")),
    ],
)
def test_a_consumer_on_one_device_needs_no_second_process(
    tmp_path: Path, consumers: list[tuple[str, str]], device: str, arguments: list[str], found: tuple[str, str]
) -> None:
    config = CONFIG + f'device = "{device}"\n[broker]\nurl = "redis://nowhere:6379/0"\n'
    done = CliRunner().invoke(worker, ["--pool", "local", *arguments], obj=invocation(tmp_path, config))
    assert done.exit_code == 0, done.output
    assert consumers == [found]


def test_a_gpu_that_is_not_there_is_named(tmp_path: Path, consumers: list[tuple[str, str]]) -> None:
    called = invocation(tmp_path, CONFIG + 'device = "cuda:7"\n')
    done = CliRunner().invoke(worker, ["--pool", "local"], obj=called)
    assert 'pools.local.device is "cuda:7", and this machine has no such GPU' in str(done.exception)
    assert not consumers


def test_a_worker_of_no_pool_says_which_there_are(tmp_path: Path) -> None:
    done = CliRunner().invoke(worker, ["--pool", "gpu"], obj=invocation(tmp_path))
    assert done.exit_code != 0
    assert "there are: local" in str(done.exception)
