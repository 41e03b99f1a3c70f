"""Small models for benchmarks, tests and first steps."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import torch

from batchyard.errors import InvalidInput, RetryableModelError
from batchyard.model import Model


class NoOp(Model):
    """Answers each input with itself, after one tiny operation on the device: what is left is the path of a job."""

    def load(self, device: str) -> None:
        self._ones = torch.ones(4096, device=device)

    def forward(self, items: Sequence[Any]) -> Sequence[Any]:
        self._ones[: len(items)].add(1.0)
        return items


class Lengths(Model):
    """Answers each text with its length. Costs one a character, and pads like a language model does.

    Options: `seconds` of sleep per unit of padded cost.
    """

    cost_unit = "characters"

    def load(self, device: str) -> None:
        self._device = device
        self._seconds = float(self.options.get("seconds", 0.0))

    def preprocess(self, inputs: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
        return [text if isinstance(text, str) else InvalidInput("an input is a string") for text in inputs]

    def cost(self, item: str) -> int:
        return len(item)

    def forward(self, items: Sequence[str]) -> Any:
        if self._seconds:
            time.sleep(self._seconds * max(map(len, items)) * len(items))
        return torch.tensor([len(text) for text in items], device=self._device)

    def postprocess(self, outputs: Any) -> Sequence[Any]:
        return [{"length": length} for length in outputs.tolist()]


class Moody(Model):
    """Does to each input what it says: `{"do": …, "value": …}`, for tests of failure.

    `echo`, `invalid`, `raise`, `busy`, `nan`, `missing` (an output too few), `vector` (a tensor of `value`), `sleep`,
    `abort` (the process).
    """

    def preprocess(self, inputs: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
        return [InvalidInput("as asked") if item["do"] == "invalid" else item for item in inputs]

    def forward(self, items: Sequence[Any]) -> Sequence[Any]:
        deeds = {item["do"] for item in items}
        if "abort" in deeds:
            os.abort()
        if "raise" in deeds:
            raise ValueError("as asked")
        if "busy" in deeds:
            raise RetryableModelError("as asked")
        for item in items:
            if item["do"] == "sleep":
                time.sleep(item["value"])
        return [_answer(item) for item in items if item["do"] != "missing"]


def _answer(item: dict[str, Any]) -> Any:
    if item["do"] == "nan":
        return {"value": float("nan")}
    if item["do"] == "vector":
        return {"vector": torch.tensor(item["value"], dtype=torch.float32), "of": item["value"]}
    return item.get("value")
