"""Compiled passes: chosen, dropped with a reason, and the same results for batches of every shape."""

from pathlib import Path
from typing import Any

import pytest
import torch

from batchyard.errors import ModelLoadError
from batchyard.model import Model
from batchyard_consumers import compiling, precision
from batchyard_consumers.precision import settle
from tests.unit.consumers.test_embeddings import TEXTS
from tests.unit.consumers.tiny import bert, labels, loaded, run


def compiler_that(does: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another compiler in the place of torch's, which takes its time."""
    monkeypatch.setattr(torch, "compile", lambda forward, **_: does(forward))


def timed(monkeypatch: pytest.MonkeyPatch, *, plain: float, compiled: float) -> None:
    monkeypatch.setattr(
        precision,
        "run_alone",
        lambda model, *_: compiled if "forward" in vars(model.compilable) else plain,
    )


def same(found: list[Any], expected: list[Any]) -> None:
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=1e-5)


@pytest.fixture
def classifier(tmp_path: Path) -> Any:
    return loaded("text-classification", bert(tmp_path, "BertForSequenceClassification", **labels("a", "b")))


def test_it_is_compiled_where_that_is_faster(classifier: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []

    def watched(forward: Any) -> Any:
        def run_it(**features: Any) -> Any:
            shapes.append(tuple(features["input_ids"].shape))
            return forward(**features)

        return run_it

    compiler_that(watched, monkeypatch)
    timed(monkeypatch, plain=2.0, compiled=1.0)
    expected = run(classifier, TEXTS)
    classifier.compile = "auto"
    said = settle(classifier, name="m@1", device="cpu")
    assert said == "float32, compiled (2.00 times as fast, agreement 1.0000)"
    assert {shape[0] for shape in shapes} >= {1, 3}
    before = len(shapes)
    same(run(classifier, TEXTS), expected)
    assert len(shapes) == before + 1


def test_it_is_not_where_it_is_not(classifier: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler_that(lambda forward: forward, monkeypatch)
    timed(monkeypatch, plain=1.0, compiled=0.95)
    classifier.compile = "auto"
    said = settle(classifier, name="m@1", device="cpu")
    assert said == "float32, not compiled (1.05 times as fast, agreement 1.0000)"
    assert "forward" not in vars(classifier.compilable)


def test_a_machine_without_a_compiler_goes_on_without(classifier: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_there(forward: Any) -> Any:
        def fail(**_: Any) -> Any:
            raise RuntimeError("No working C++ compiler found\nand much more")

        return fail

    compiler_that(none_there, monkeypatch)
    classifier.compile = "auto"
    said = settle(classifier, name="m@1", device="cpu")
    assert said == "float32, not compiled (it failed: No working C++ compiler found)"
    assert len(run(classifier, TEXTS)) == len(TEXTS)
    classifier.compile = "on"
    with pytest.raises(ModelLoadError, match='compile is "on", but it failed: No working C'):
        settle(classifier, name="m@1", device="cpu")


def test_other_results_are_not_taken(classifier: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(forward: Any) -> Any:
        def run_it(**features: Any) -> Any:
            found = forward(**features)
            found.logits = found.logits.flip(-1)
            return found

        return run_it

    compiler_that(wrong, monkeypatch)
    timed(monkeypatch, plain=9.0, compiled=1.0)
    classifier.compile = "on"
    with pytest.raises(ModelLoadError, match=r"m@1: compile is \"on\", but 9.00 times as fast, agreement 0\."):
        settle(classifier, name="m@1", device="cpu")


def test_what_cannot_be_compiled_says_so() -> None:
    model = Model()
    model.compile = "on"
    with pytest.raises(ModelLoadError, match='m@1: compile is "on"; with its runtime it may be "off"'):
        settle(model, name="m@1", device="cpu")
    model.compile = "auto"
    assert settle(model, name="m@1", device="cpu") == "float32"


def test_torch_s_own_compiler_takes_every_shape_without_compiling_again(
    classifier: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[Any] = []

    def counting(module: Any, _inputs: Any) -> Any:
        graphs.append(module)
        return module

    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward, **_: torch_compile(forward, dynamic=True, backend=counting))
    expected = [run(classifier, TEXTS[:count]) for count in range(1, len(TEXTS) + 1)]
    compiling.begin(classifier)
    compiling.warm(classifier, "cpu")
    before = len(graphs)
    assert before > 0
    for count, rows in enumerate(expected, 1):
        same(run(classifier, TEXTS[:count]), rows)
    assert len(graphs) == before
    compiling.end(classifier)
