"""Memory as the ledger reckons with it, and as it was measured."""

import gc
from typing import Any

import pytest
import torch

from batchyard_consumers.footprint import Footprint, Scale, in_use


def test_a_pass_is_reckoned_in_proportion_to_its_cost() -> None:
    found = Footprint(weights=1000, passes=300, cost=30)
    assert [found.at(budget) for budget in (0, 30, 60)] == [1000, 1300, 1600]
    assert Footprint().at(1_000_000) == 0


def test_on_a_gpu_weights_and_passes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {"now": 100, "most": 100}
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: used["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: used["most"])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: used.update(most=used["now"]))
    scale = Scale("cuda:0")
    used.update(now=1100, most=9999)  # loading took more for a moment
    scale.loaded()
    used.update(most=1500)
    found = scale.footprint(weights=1000, cost=64)
    assert found == Footprint(weights=1000, passes=400, cost=64, measured=1400)
    assert scale.footprint(weights=1000, cost=0).at(64) == 1000


def test_a_model_that_leaves_the_gpu_alone_takes_nothing_of_it() -> None:
    scale = Scale("cuda:0")
    scale.loaded()
    assert scale.footprint(weights=0, cost=64) == Footprint(cost=64)


def test_on_a_cpu_it_is_by_how_much_the_process_grew() -> None:
    gc.collect()
    scale = Scale("cpu")
    kept: Any = torch.ones(32 * 2**20)  # more than is ever taken from what was freed before
    scale.loaded()
    found = scale.footprint(weights=kept.numel() * 4, cost=64)
    assert found.at(10**6) == 128 * 2**20
    assert found.measured == pytest.approx(128 * 2**20, rel=0.25)
    assert in_use("cpu") > 128 * 2**20
