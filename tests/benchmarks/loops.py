"""What the system is measured against: loops in a process of their own over the same texts, weights, dtype and device.

Run as a module it reads a request from standard input and prints one line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BUDGETS = {"cpu": (256, 512, 1024, 2048, 4096, 8192), "cuda": tuple(1 << power for power in range(11, 19))}
"""Tokens, by device."""
ENCODE_BATCHES = {"cpu": (8, 16, 32, 64, 128), "cuda": (32, 128, 512, 1024, 2048)}
"""Texts, by device."""
SWEEP_PART = 6
"""Of the texts, one in so many tells which budget and which batch size are best; all of them tell the rate of those."""


@dataclass(frozen=True, kw_only=True)
class Loops:
    """Texts a second without a queue."""

    loop: float
    """Sorted by length, at the best budget; 0 where none was wanted."""
    budget: int
    """Tokens of its batches, padding included."""
    rates: dict[int, float]
    """Of every budget, on the part of the texts that is swept with."""
    encode: float
    """Of sentence-transformers' own `encode`, at its best batch size."""
    encode_batch: int
    busy: float
    """The part of the loop's time that was spent in passes."""
    embeddings: np.ndarray[Any, Any]
    """Of `encode`, float32, in the order of the texts."""


def measure_loops(
    *,
    inputs: Sequence[str],
    folder: Path,
    dtype: str,
    device: str,
    loop: bool = True,
    more_budgets: Sequence[int] = (),
) -> Loops:
    """Sweep on a part of the texts, measure on all of them; of `encode` alone where no loop is wanted."""
    budgets = (*BUDGETS[device], *more_budgets) if loop else ()
    request = {"inputs": list(inputs), "folder": str(folder), "dtype": dtype, "device": device, "budgets": budgets}
    with tempfile.TemporaryDirectory(prefix="by-loops-") as there:
        said = _in_own_process({**request, "embeddings": f"{there}/embeddings.npy"})
        embeddings = np.load(f"{there}/embeddings.npy")
    rates = {int(budget): rate for budget, rate in said.pop("rates").items()}
    return Loops(embeddings=embeddings, rates=rates, **said)


def _in_own_process(request: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.loops"]
    done = subprocess.run(command, input=json.dumps(request), check=True, stdout=subprocess.PIPE, text=True)
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def _main() -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    request = json.load(sys.stdin)
    inputs: list[str] = request["inputs"]
    some = inputs[::SWEEP_PART]
    model = SentenceTransformer(
        request["folder"],
        device=request["device"],
        local_files_only=True,
        model_kwargs={"dtype": getattr(torch, request["dtype"])},
    )
    _loop(model, some[:64], budget=256)
    loops = {
        budget: _rate(lambda budget=budget: _loop(model, some, budget=budget), some) for budget in request["budgets"]
    }
    encodes = {
        size: _rate(lambda size=size: _encode(model, some, size=size), some)
        for size in ENCODE_BATCHES[request["device"]]
    }
    budget = max(loops, key=lambda one: loops[one], default=0)
    encode_batch = max(encodes, key=lambda one: encodes[one])
    busy = [0.0]
    loop = _rate(lambda: busy.append(_loop(model, inputs, budget=budget)), inputs) if budget else 0.0
    encode = _rate(lambda: np.save(request["embeddings"], _encode(model, inputs, size=encode_batch)), inputs)
    said = {"loop": loop, "budget": budget, "encode": encode, "encode_batch": encode_batch, "rates": loops}
    print(json.dumps({**said, "busy": busy[-1] * loop / len(inputs)}))


def _rate(work: Any, texts: Sequence[str]) -> float:
    started = time.perf_counter()
    work()
    return len(texts) / (time.perf_counter() - started)


def _encode(model: Any, texts: Sequence[str], *, size: int) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = model.encode(texts, batch_size=size, convert_to_tensor=True).float().cpu().numpy()
    return found


def _loop(model: Any, texts: Sequence[str], *, budget: int) -> float:
    """Tokens of all texts, batches from long ones to short ones, results on the CPU; seconds in which it computed."""
    import torch

    busy = 0.0
    with torch.inference_mode():
        tokens = model.tokenizer(list(texts), truncation=True, max_length=model.max_seq_length)["input_ids"]
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]), reverse=True)
        while order:
            size = max(1, budget // len(tokens[order[0]]))
            rows, order = order[:size], order[size:]
            batch = model.tokenizer.pad({"input_ids": [tokens[i] for i in rows]}, return_tensors="pt")
            features = {name: values.to(model.device) for name, values in batch.items()}
            started = time.perf_counter()
            model(features)["sentence_embedding"].float().cpu()
            busy += time.perf_counter() - started
    return busy


if __name__ == "__main__":
    _main()
