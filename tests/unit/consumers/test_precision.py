"""What a model computes in: as asked for, or the fastest that agrees with float32."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from batchyard.errors import ModelLoadError
from batchyard.model import Model
from batchyard_consumers import precision
from batchyard_consumers.host_copies import size_of
from batchyard_consumers.precision import Bench, Trial, choose, settle
from batchyard_consumers.runtimes import proofs
from tests.unit.consumers.test_embeddings import loaded as embedder
from tests.unit.consumers.tiny import bert, labels, loaded, run


class Switching(Model):
    """Agrees and takes as long as it is told for each dtype."""

    dtypes = ("bfloat16", "float16", "int8")
    tolerance = 0.9

    def __init__(self, agreements: dict[str, float]) -> None:
        self.agreements = agreements
        self.used: list[tuple[str, bool]] = []

    def use_dtype(self, name: str, *, for_good: bool) -> None:
        self.used.append((name, for_good))

    def proofs(self) -> list[Any]:
        return ["proof"]

    def samples(self, cost: int) -> list[Any]:
        return [0] * cost

    def forward(self, items: Sequence[Any]) -> Any:
        return [self.used[-1][0]] * len(items)

    def agreement(self, reference: Any, outputs: Any) -> float:
        return 1.0 if reference == outputs else self.agreements[outputs[0]]


def trial(dtype: str, seconds: float, agreement: float = 1.0) -> Trial:
    return Trial(dtype=dtype, seconds=seconds, agreement=agreement)


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([trial("bfloat16", 0.5), trial("float16", 0.4)], "float16"),
        ([trial("bfloat16", 0.5), trial("float16", 0.4, 0.998)], "bfloat16"),
        ([trial("bfloat16", 0.95)], "float32"),
        ([trial("bfloat16", 0.1, float("nan"))], "float32"),
        ([], "float32"),
    ],
)
def test_the_fastest_that_agrees_is_chosen(others: list[Trial], expected: str) -> None:
    assert choose([trial("float32", 1.0), *others], tolerance=0.999).dtype == expected


def test_auto_tries_all_and_says_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Switching({"bfloat16": 0.95, "float16": 0.5})
    model.dtype = "auto"
    times = {"float32": 4.0, "bfloat16": 2.0, "float16": 1.0}
    monkeypatch.setattr(precision, "run_alone", lambda model, *_: times[model.used[-1][0]])
    said = settle(model, name="m@1", device="cpu")
    assert (
        said == "bfloat16 (bfloat16 2.00 times as fast, agreement 0.9500; float16 4.00 times as fast, agreement 0.5000)"
    )
    assert model.used[-1] == ("bfloat16", True)
    assert not any(for_good for _, for_good in model.used[:-1])


def test_a_dtype_that_is_far_behind_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Switching({"bfloat16": 1.0, "float16": 1.0})
    passes: list[str] = []
    times = {"float32": 1.0, "bfloat16": 1.5, "float16": 9.0}

    def run_alone(model: Switching, *_: object) -> float:
        passes.append(model.used[-1][0])
        return times[passes[-1]]

    monkeypatch.setattr(precision, "run_alone", run_alone)
    assert [trial.seconds for trial in Bench(model, "cpu").dtypes()] == [1.0, 1.5, 9.0]
    assert passes.count("float16") == 1
    assert passes.count("float32") == passes.count("bfloat16") == precision.TRIALS


def test_a_dtype_that_is_named_is_used_untried() -> None:
    model = Switching({})
    model.dtype = "float16"
    assert settle(model, name="m@1", device="cpu") == "float16"
    assert model.used == [("float16", True)]


def test_int8_is_proven_even_where_it_is_named() -> None:
    model = Switching({"int8": 0.85})
    model.dtype = "int8"
    with pytest.raises(ModelLoadError, match=r"m@1: with dtype 'int8' it agrees with float32 to 0\.8500, and 0\.9 is"):
        settle(model, name="m@1", device="cpu")
    model.options = {"tolerance": 0.8}
    assert settle(model, name="m@1", device="cpu") == "int8 (agreement 0.8500)"
    assert model.used[-1] == ("int8", True)


def test_a_dtype_that_the_model_has_not_is_refused() -> None:
    model = Model()
    model.dtype = "bfloat16"
    with pytest.raises(ModelLoadError, match="m@1: dtype is 'bfloat16'; with its runtime it may be auto, float32"):
        settle(model, name="m@1", device="cpu")
    model.dtype = "auto"
    assert settle(model, name="m@1", device="cpu") == "float32"


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_narrow_embeddings_stay_close(dtype: str) -> None:
    model = embedder()
    before = size_of(model)
    expected = torch.tensor(model._encoder.encode(list(proofs.TEXTS)))
    model.dtype = dtype
    settle(model, name="m@1", device="cpu")
    assert size_of(model) < (0.56 if dtype == "bfloat16" else 0.68) * before  # half of it are words, which stay words
    found = torch.stack(run(model, list(proofs.TEXTS)))
    assert found.dtype == torch.float32
    assert model.agreement(expected, found) >= model.tolerance
    assert not torch.equal(expected, found)
    assert (found.norm(dim=1) - 1).abs().max() < 1e-5


def test_proofs_are_of_every_length() -> None:
    model = embedder()
    lengths = [model.cost(item) for item in model.preprocess(list(proofs.TEXTS), {})]
    assert min(lengths) < 8
    assert max(lengths) > 150


HEADS = {
    "text-classification": ("BertForSequenceClassification", labels("a", "b")),
    "reranking": ("BertForSequenceClassification", labels("x")),
    "token-classification": ("BertForTokenClassification", labels("O", "B-X")),
}


@pytest.mark.parametrize("runtime", HEADS)
def test_auto_proves_every_head(runtime: str, tmp_path: Path) -> None:
    head, config = HEADS[runtime]
    model = loaded(runtime, bert(tmp_path, head, **config))
    trials = Bench(model, "cpu").dtypes()
    assert [trial.dtype for trial in trials] == ["float32", "bfloat16", "float16"]
    assert trials[0].agreement == 1.0
    assert all(0.5 < trial.agreement < 1.0 for trial in trials[1:])


def test_auto_proves_images(tmp_path: Path) -> None:
    from tests.unit.consumers.test_runtimes import vit

    trials = Bench(loaded("image-classification", vit(tmp_path)), "cpu").dtypes()
    assert trials[0].agreement == 1.0
    assert all(0.5 < trial.agreement < 1.0 for trial in trials[1:])
