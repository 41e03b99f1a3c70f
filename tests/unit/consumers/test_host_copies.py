"""Weights in the machine's memory: what is moved, and how much of it there may be."""

from pathlib import Path
from typing import Any

import pytest
import torch

from batchyard.model import Model
from batchyard.settings import PoolSettings
from batchyard_consumers.host_copies import GIB, free_memory, host_room, host_size_of, size_of, to_device, to_host

MEMINFO = "MemTotal:       16777216 kB\nMemFree:  1 kB\nMemAvailable:    8388608 kB\n"


class Tied(Model):
    """Weights that two layers share, a buffer, and a tensor of its own."""

    def load(self, device: str) -> None:
        self.network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4))
        self.network[2].weight = self.network[0].weight
        self.scale = torch.full((3,), 2.0)
        self.network.eval()

    def forward(self, items: Any) -> Any:
        return self.network(torch.ones(len(items), 4)) * self.scale[0]


def test_a_model_computes_the_same_after_it_has_been_away() -> None:
    model = Tied()
    model.load("cpu")
    expected, weights = model.forward([1, 2]), list(model.network.parameters())
    before = {tensor.data_ptr() for tensor in weights}
    assert to_host(model, device="cpu")
    assert not before & {tensor.data_ptr() for tensor in weights}
    to_device(model, device="cpu")
    assert torch.equal(model.forward([1, 2]), expected)
    assert model.network[2].weight is model.network[0].weight
    assert size_of(model) == 4 * (16 + 4 + 4 + 4 + 4 + 4 + 4 + 3) + 8
    assert host_size_of(model) == 64 + 6 * 16 + 16 + 8


def test_what_cannot_be_moved_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Tied()
    model.load("cpu")

    def full(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("batchyard_consumers.host_copies._on_host", full)
    assert not to_host(model, device="cpu")


@pytest.mark.parametrize(("freed", "is_kept"), [(1.0, True), (0.9, True), (0.5, False)])
def test_a_model_that_holds_on_to_its_device_otherwise_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, freed: float, is_kept: bool
) -> None:
    model = Tied()
    model.load("cpu")
    allocated = iter([10_000, 10_000 - int(size_of(model) * freed + 0.999)])
    monkeypatch.setattr("batchyard_consumers.host_copies._allocated", lambda _: next(allocated))
    assert to_host(model, device="cpu") is is_kept


def test_how_much_may_be_kept() -> None:
    def pool(limit: float | None) -> PoolSettings:
        return PoolSettings(name="p", models=(), host_memory_gib=limit)

    assert host_room("cpu", pool(9))(5) == 0
    assert host_room("cuda:0", pool(0))(5) == 0
    assert host_room("cuda:0", pool(2))(5) == 2 * GIB
    assert host_room("cuda:0", pool(None))(5) >= 5


def test_a_quarter_of_the_machine_and_of_its_container_stays_free(tmp_path: Path) -> None:
    assert free_memory(tmp_path) == 0
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    assert free_memory(tmp_path) == 4 * GIB
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text(f"{3 * GIB}\n")
    (group / "memory.stat").write_text(f"anon 7\ninactive_file {GIB}\n")
    (group / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) == 4 * GIB
    (group / "memory.max").write_text(f"{4 * GIB}\n")
    assert free_memory(tmp_path) == GIB
