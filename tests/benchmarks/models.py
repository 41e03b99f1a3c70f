"""The models that benchmarks serve; they cost next to nothing, so that the system around them is what is measured."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchyard import Model


class NoOp(Model):
    """Adds one to a number of each item in one torch operation, and returns about as many bytes as it was given."""

    def load(self, device: str) -> None:
        import torch

        self._torch = torch
        self._device = device

    def forward(self, items: Sequence[Any]) -> Any:
        numbers = self._torch.tensor([item["n"] for item in items], dtype=self._torch.int64, device=self._device)
        return (numbers + 1).tolist(), items

    def postprocess(self, outputs: Any) -> Sequence[Any]:
        numbers, items = outputs
        return [{"n": number, "text": item["text"]} for number, item in zip(numbers, items, strict=True)]


def make_input(index: int) -> dict[str, Any]:
    """About 100 bytes of JSON, different for every index."""
    return {"n": index, "text": f"{index:010d}" + "-batchyard-no-op-benchmark-payload-of-a-hundred-bytes-" + "x" * 15}


def expected(index: int) -> dict[str, Any]:
    """The result that belongs to `make_input(index)` and to no other."""
    return {"n": index + 1, "text": make_input(index)["text"]}


class Slow(NoOp):
    """As NoOp, at 50 ms a batch: so that a backlog stays."""

    def forward(self, items: Sequence[Any]) -> Any:
        time.sleep(0.05)
        return super().forward(items)


class Logged(Model):
    """Answers each number with itself, at 50 ms a job, and writes down what it has computed and in which time."""

    def load(self, device: str) -> None:
        self._log = Path(os.environ["BENCH_COMPUTED"])

    def forward(self, items: Sequence[Any]) -> Sequence[Any]:
        started = time.perf_counter()
        time.sleep(0.05 * len(items))
        with self._log.open("a") as log:
            log.write(json.dumps({"numbers": list(items), "seconds": time.perf_counter() - started}) + "\n")
        return items
