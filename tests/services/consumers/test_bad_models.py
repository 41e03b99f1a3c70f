"""A whole system with every kind of bad model in one pool: each ends in a clear error of its own, and nobody else in
anything."""

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchyard.jobs import State
from tests.services.consumers.yard import Yard, result, until, yard

MODELS = """
import os

import torch

from batchyard import Model


class Honest(Model):
    def forward(self, items):
        return list(items)


class Miscounting(Model):
    def forward(self, items):
        return [item for item in items if item != "drop"]


class Mutating(Model):
    def forward(self, items):
        for item in items:
            item["n"] += 1000
        if any(item["n"] == 1007 for item in items):
            raise ValueError("not seven")
        return items


class OneNaN(Model):
    def forward(self, items):
        rows = torch.tensor(items, dtype=torch.float32).reshape(-1, 1).repeat(1, 4)
        rows[rows == 3] = torch.nan
        return rows


class OneInAThousand(Model):
    passes = 0

    def forward(self, items):
        type(self).passes += 1
        if 500 in items:
            raise KeyError("five hundred")
        return [[item, self.passes] for item in items]


class Greedy(Model):
    def forward(self, items):
        hoard = [torch.empty(1 << 28) for item in items if item == "greedy" for _ in range(1 << 16)]
        return [len(hoard) for _ in items]


class Aborting(Model):
    def forward(self, items):
        if "abort" in items:
            os.abort()
        return list(items)


class AbortingWhileItLoads(Model):
    def load(self, device):
        os.abort()

    def forward(self, items):
        return list(items)


class Quitting(Model):
    def forward(self, items):
        if "quit" in items:
            raise SystemExit(1)
        return list(items)
"""
TWO = ("AbortingWhileItLoads", "Honest")
KINDS = ("Honest", "Miscounting", "Mutating", "OneNaN", "OneInAThousand", "Greedy", "Aborting", "Quitting")
NEVER_LOADED = """
[models.truncated]
runtime = "torchscript"
source = "truncated.pt"
options = { inputs = { x = { shape = [2] } } }
[models.misspelt]
runtime = "bad_models:Honset"
[models.unparsable]
runtime = "unparsable:Model"
"""


def write(folder: Path) -> str:
    """The bad models in their folder; returns their configuration."""
    (folder / "bad_models.py").write_text(MODELS)
    (folder / "unparsable.py").write_text("class Model(:\n")
    (folder / "truncated.pt").write_bytes(b"PK\x03\x04 and no more")
    named = [f'[models.{kind.lower()}]\nruntime = "bad_models:{kind}"\n' for kind in KINDS]
    return "".join(named) + NEVER_LOADED


@pytest.fixture
def place(tmp_path: Path, valkey_url: str) -> Iterator[Yard]:
    models = write(tmp_path)
    names = ", ".join(f'"{name}"' for name in (*map(str.lower, KINDS), "truncated", "misspelt", "unparsable"))
    pool = f"[pools.local]\nmodels = [{names}]\ndrain_seconds = 5\n"
    with yard(tmp_path, models=models, broker_url=valkey_url, extra=pool) as made:
        yield made


@pytest.fixture
def two(tmp_path: Path, valkey_url: str) -> Iterator[Yard]:
    write(tmp_path)
    models = "".join(f'[models.{kind.lower()}]\nruntime = "bad_models:{kind}"\n' for kind in TWO)
    with yard(tmp_path, models=models, broker_url=valkey_url) as made:
        yield made


class Fleet:
    """One worker, with another in its place whenever it has ended; it may have so much memory."""

    def __init__(self, place: Yard, *, bytes_more: int = resource.RLIM_INFINITY) -> None:
        self._place = place
        self._limit = bytes_more
        self._lease = {"BATCHYARD_QUEUES__LEASE_SECONDS": "60"}
        self.deaths = 0
        self.worker = self._start()

    def _start(self) -> Any:
        worker = self._place.start(env=self._lease)
        resource.prlimit(worker.pid, resource.RLIMIT_AS, (self._limit, self._limit))
        return worker

    def finish(self, ids: list[int]) -> list[Any]:
        def finished() -> bool:
            self._place.chores()
            if self.worker.poll() is not None:
                self.deaths += 1
                self.worker = self._start()
            return len(self._place.store.finished_among(ids)) == len(ids)

        until(finished, timeout=300, yard=self._place)
        return self._place.view(ids)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_bad_model_ends_in_its_own_error_and_harms_nobody(place: Yard) -> None:
    fleet = Fleet(place, bytes_more=24 << 30)
    place.ready()
    sent: dict[str, list[Any]] = {
        "honest": list(range(200)),
        "miscounting": [*range(50), "drop", *range(50)],
        "mutating": [{"n": n} for n in range(40)],
        "onenan": list(range(30)),
        "oneinathousand": list(range(1000)),
        "greedy": ["a", "greedy", "b"],
        "aborting": [*range(20), "abort", *range(20)],
        "quitting": ["a", "quit", "b"],
    }
    ids = {model: place.submit(f"{model}@1", inputs) for model, inputs in sent.items()}
    stuck = [job for model in ("truncated", "misspelt", "unparsable") for job in place.submit(f"{model}@1", ["x"])]
    views = {model: fleet.finish(numbers) for model, numbers in ids.items()}

    guilty = {model: {p: result(v) for p, v in enumerate(of) if v.error is not None} for model, of in views.items()}
    assert {model: {p: error.code for p, error in errors.items()} for model, errors in guilty.items()} == {
        "honest": {},
        "miscounting": {50: "bad_output"},
        "mutating": {7: "model_error"},
        "onenan": {3: "bad_output"},
        "oneinathousand": {500: "model_error"},
        "greedy": {1: "too_large"},
        "aborting": {20: "crash_loop"},
        "quitting": {1: "model_error"},
    }
    words = {model: error.message for model, errors in guilty.items() for error in errors.values()}
    assert words["miscounting"] == "the model returned 0 results for 1 inputs"
    assert words["mutating"] == "ValueError: not seven"
    assert "nan" in words["onenan"].lower()
    assert words["oneinathousand"] == "KeyError: 'five hundred'"
    assert words["greedy"] == "the input does not fit into the memory of the device"
    assert "SIGABRT" in words["aborting"] or "ended while it ran this job alone, 3 times" in words["aborting"]
    assert words["quitting"] == "SystemExit: 1"

    good = {model: [v for v in of if v.error is None] for model, of in views.items()}
    assert all(view.state is State.SUCCEEDED and view.failures == 0 for of in good.values() for view in of)
    assert [result(view) for view in good["honest"]] == sent["honest"]
    assert [result(view)["n"] for view in good["mutating"]] == [1000 + n for n in range(40) if n != 7]
    assert [result(view)[0] for view in good["oneinathousand"]] == [n for n in range(1000) if n != 500]
    assert max(result(view)[1] for view in good["oneinathousand"]) <= 70
    assert 1 <= fleet.deaths <= 4

    assert place.states(stuck) == {State.QUEUED: 3}
    reasons = {version.model: version.load_error or "" for version in place.store.models()}
    assert "cut off or damaged: truncated.pt (16 bytes)" in reasons["truncated"]
    assert "no attribute 'Honset'" in reasons["misspelt"]
    assert "SyntaxError: invalid syntax (unparsable.py, line 1)" in reasons["unparsable"]
    assert not any(reasons[model] for model in sent)
    fleet.worker.terminate()
    assert fleet.worker.wait(20) == 0
    assert list((place.settings.state_dir / "flights").iterdir()) == []
    place.store.fold(limit=10_000)
    assert place.store.recount() == place.store.backlog()


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_model_that_ends_the_process_while_it_loads_lets_the_others_work(two: Yard) -> None:
    fleet = Fleet(two)
    views = fleet.finish(two.submit("honest@1", list(range(200))))
    assert fleet.deaths >= 2
    assert {(view.state, view.failures, view.crashes) for view in views} == {(State.SUCCEEDED, 0, 0)}
    reasons = {version.model: version.load_error or "" for version in two.store.models()}
    assert "abortingwhileitloads@1 cannot load: the process " in reasons["abortingwhileitloads"]
    fleet.worker.terminate()
    fleet.worker.wait(20)
