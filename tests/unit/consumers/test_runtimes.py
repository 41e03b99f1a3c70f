"""Each runtime against the library that it runs, on small models of random weights."""

import base64
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from batchyard.errors import InvalidInput, ModelLoadError
from batchyard.inputs import Validator
from batchyard.settings import RUNTIMES, ModelSettings
from batchyard_consumers import runtimes
from batchyard_consumers.loading import load
from batchyard_consumers.runtimes.sources import resolve_source
from tests.unit.consumers.jobs import served
from tests.unit.consumers.tiny import TOKENIZER, bert, labels, loaded, run

TEXTS = ["short", "", "Angela Merkel lived in Berlin, and liked it", "a longer text " * 40]
PAIRS: list[Any] = [{"text": "a man sleeps", "text_pair": "someone is awake"}, "alone", {"text": "also alone"}]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("c"), "BertForSequenceClassification", **labels("bad", "good", "so"))


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = labels("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    return bert(tmp_path_factory.mktemp("t"), "BertForTokenClassification", **names)


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("r"), "BertForSequenceClassification", **labels("LABEL_0"))


def library(task: str, folder: Path, **options: Any) -> Any:
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own
        return transformers.pipeline(task, model=str(folder), **options)


def test_every_name_in_the_configuration_has_a_runtime() -> None:
    assert tuple(sorted(runtimes.RUNTIMES)) == RUNTIMES
    for name in RUNTIMES:
        runtimes.find_model(ModelSettings(name="m", runtime=name))


def test_attention_is_torch_s_own_unless_another_is_asked_for(classifier: Path) -> None:
    assert loaded("text-classification", classifier)._module.config._attn_implementation == "sdpa"
    plain = loaded("text-classification", classifier, attention="eager")
    assert plain._module.config._attn_implementation == "eager"
    encoder = loaded("sentence-transformers", Path(resolve_source(TOKENIZER, model="m")))._encoder
    assert encoder[0].auto_model.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="no_such_attention"):
        loaded("text-classification", classifier, attention="no_such_attention")


def test_texts_are_classified_as_by_the_library(classifier: Path) -> None:
    expected = library("text-classification", classifier, top_k=None)(TEXTS, truncation=True, max_length=64)
    model = loaded("text-classification", classifier)
    for found, rows in zip(run(model, TEXTS), expected, strict=True):
        assert found == {"label": rows[0]["label"], "score": pytest.approx(rows[0]["score"], abs=1e-5)}
    for found, rows in zip(run(model, TEXTS, top_k=2), expected, strict=True):
        assert [one["label"] for one in found["labels"]] == [row["label"] for row in rows[:2]]
    assert len(run(model, ["x"], top_k=9)[0]["labels"]) == 3


def test_pairs_are_told_apart_from_texts(classifier: Path) -> None:
    theirs = library("text-classification", classifier, top_k=1)
    expected = [theirs(value if isinstance(value, dict) else {"text": value})[0]["score"] for value in PAIRS]
    assert [row["score"] for row in run(loaded("text-classification", classifier), PAIRS)] == pytest.approx(expected)


def test_labels_of_which_several_hold_have_scores_of_their_own(tmp_path: Path) -> None:
    folder = bert(
        tmp_path,
        "BertForSequenceClassification",
        problem_type="multi_label_classification",
        **labels("a", "b", "c"),
    )
    found = run(loaded("text-classification", folder, top_k=3), TEXTS)
    expected = library("text-classification", folder, top_k=None)(TEXTS, truncation=True, max_length=64)
    for one, rows in zip(found, expected, strict=True):
        assert [label["score"] for label in one["labels"]] == pytest.approx([row["score"] for row in rows], abs=1e-5)
    assert any(abs(sum(label["score"] for label in one["labels"]) - 1) > 0.01 for one in found)


def test_what_a_classifier_cannot_take_fails_alone(classifier: Path) -> None:
    model = loaded("text-classification", classifier)
    items = model.preprocess(["good", 7, {"text": 1}, None], {})
    assert [isinstance(item, InvalidInput) for item in items] == [False, True, True, True]
    with pytest.raises(InvalidInput, match="top_k is a whole number from 1, not 0"):
        model.preprocess(["x"], {"top_k": 0})
    Validator(model.input_schema).check([PAIRS[0]], place=str, several=True)
    with pytest.raises(InvalidInput):
        Validator(model.input_schema).check([{"txt": "x"}], place=str, several=True)


def test_entities_are_the_library_s(tagger: Path) -> None:
    theirs = library("token-classification", tagger, aggregation_strategy="simple")
    texts = [text[:100] for text in TEXTS if text]
    for found, text in zip(run(loaded("token-classification", tagger), texts), texts, strict=True):
        expected = theirs(text)
        assert [(one["label"], one["start"], one["end"]) for one in found["entities"]] == [
            (one["entity_group"], one["start"], one["end"]) for one in expected
        ]
        assert [one["score"] for one in found["entities"]] == pytest.approx(
            [one["score"] for one in expected], abs=1e-5
        )
        assert all(one["text"] == text[one["start"] : one["end"]] for one in found["entities"])
    assert any(run(loaded("token-classification", tagger), texts)[n]["entities"] for n in range(len(texts)))


def test_documents_are_ranked_as_by_the_library(ranker: Path) -> None:
    from sentence_transformers import CrossEncoder

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own
        theirs = CrossEncoder(str(ranker), max_length=64)
    asked = [
        {"query": "capital of France", "documents": ["Paris", "a dog", "Berlin is far " * 9]},
        {"query": "one", "documents": ["two"]},
    ]
    model = loaded("reranking", ranker)
    for one, found in zip(asked, run(model, asked), strict=True):
        expected = theirs.predict([(one["query"], document) for document in one["documents"]])
        assert found["scores"] == pytest.approx(expected.tolist(), abs=1e-5)
    assert model.cost(model.preprocess(asked[:1], {})[0]) == 3 * max(
        len(row.ids) for row in model.preprocess(asked[:1], {})[0]
    )
    raw = run(loaded("reranking", ranker, activation="none"), asked)
    assert torch.tensor(raw[0]["scores"]).sigmoid().tolist() == pytest.approx(run(model, asked)[0]["scores"], abs=1e-5)


def test_a_ranker_has_one_label(classifier: Path, ranker: Path) -> None:
    with pytest.raises(ValueError, match="has one label, and this one has 3"):
        loaded("reranking", classifier)
    with pytest.raises(ValueError, match='"sigmoid" or "none"'):
        loaded("reranking", ranker, activation="tanh")


def test_pickled_weights_are_not_read(classifier: Path, tmp_path: Path) -> None:
    for file in classifier.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    made = served()
    made.settings = ModelSettings(name="m", runtime="text-classification", source=str(tmp_path))
    with pytest.raises(ModelLoadError, match="safetensors"):
        load(made, device="cpu", report=lambda *_: None)


def image(size: tuple[int, int], kind: str = "PNG") -> bytes:
    from PIL import Image

    pixels = np.random.default_rng(sum(size)).integers(0, 255, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def vit(folder: Path) -> Path:
    """A small vision transformer and how it wants its pictures."""
    import transformers
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(7)
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        initializer_range=0.5,
        **labels("cat", "dog", "fish"),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        transformers.ViTForImageClassification(config).save_pretrained(folder)
        ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vit(tmp_path_factory.mktemp("v"))


def test_images_are_classified_as_by_the_library(pictures: Path) -> None:
    import transformers
    from PIL import Image

    sent = [image((50, 40)), image((16, 90), "JPEG"), image((32, 32))]
    inputs: list[Any] = [sent[0], {"base64": base64.b64encode(sent[1]).decode()}, sent[2]]
    model = loaded("image-classification", pictures)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        processor = transformers.AutoImageProcessor.from_pretrained(pictures, backend="pil")
        network = transformers.ViTForImageClassification.from_pretrained(pictures).eval()
    seen = processor(images=[Image.open(io.BytesIO(one)).convert("RGB") for one in sent], return_tensors="pt")
    with torch.inference_mode():
        expected = network(**seen).logits.softmax(-1).max(-1)
    found = run(model, inputs)
    assert [one["score"] for one in found] == pytest.approx(expected.values.tolist(), abs=1e-5)
    assert [one["label"] for one in found] == [["cat", "dog", "fish"][place] for place in expected.indices.tolist()]
    assert len(run(model, inputs, top_k=2)[0]["labels"]) == 2
    assert model.cost(model.samples(1)[0]) == 32 * 32


def test_what_is_no_image_fails_alone(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("image-classification", pictures)
    bad = [b"text", image((9, 9))[:60], {"base64": "%"}, 7]
    items = model.preprocess([image((9, 9)), *bad], {})
    assert [isinstance(item, InvalidInput) for item in items] == [False, True, True, True, True]
    monkeypatch.setattr("batchyard_consumers.runtimes.images.MOST_PIXELS", 80)
    assert "9 x 9 pixels; at most 80" in str(model.preprocess([image((9, 9))], {})[0])


class Sums(torch.nn.Module):
    """Sums of rows, and their doubles."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": x.sum(dim=1), "double": x * 2}


class Pair(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a * b.sum(dim=1, keepdim=True)


def scripted(module: torch.nn.Module, file: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(module), file)
    return file


def exported(module: torch.nn.Module, file: Path, *arguments: torch.Tensor, **dynamic: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        torch.export.save(torch.export.export(module, arguments, **dynamic), file)
    return file


def test_scripts_run_on_inputs_of_any_length(tmp_path: Path) -> None:
    options = {"inputs": {"x": {"dtype": "float32", "shape": [-1]}}}
    model = loaded("torchscript", scripted(Sums(), tmp_path / "sums.pt"), **options)
    items = model.preprocess([[1, 2, 3], {"x": [4]}], {})
    assert [model.cost(item) for item in items] == [3, 1]
    found = run(model, [[1, 2, 3], {"x": [4]}])
    assert [float(one["sum"]) for one in found] == [6, 4]
    assert found[1]["double"].tolist() == [8, 0, 0]
    Validator(model.input_schema).check([[1, 2], {"x": [1.5]}], place=str, several=True)
    with pytest.raises(InvalidInput):
        Validator(model.input_schema).check(["text"], place=str, several=True)


def test_exported_programs_run_on_several_inputs(tmp_path: Path) -> None:
    rows = torch.export.Dim("rows")
    file = exported(
        Pair(),
        tmp_path / "pair.pt2",
        torch.ones(2, 3),
        torch.ones(2, 2),
        dynamic_shapes={"a": {0: rows}, "b": {0: rows}},
    )
    options = {"inputs": {"a": {"shape": [3]}, "b": {"dtype": "float32", "shape": [2]}}}
    model = loaded("torch-export", file, **options)
    found = run(model, [{"a": [1, 2, 3], "b": [1, 1]}, {"a": [1, 1, 1], "b": [2, 3]}, {"a": [0, 0, 1], "b": [0, 1]}])
    assert [row.tolist() for row in found] == [[2, 4, 6], [5, 5, 5], [0, 0, 1]]


def test_what_does_not_fit_the_declared_input_fails_alone(tmp_path: Path) -> None:
    options = {"inputs": {"x": {"dtype": "int64", "shape": [2]}}}
    model = loaded("torchscript", scripted(Sums(), tmp_path / "sums.pt"), **options)
    items = model.preprocess([[1, 2], [1], [[1, 2]], "ab", {"y": [1, 2]}, [1, [2]], [2**70, 1]], {})
    assert [isinstance(item, InvalidInput) for item in items] == [False, True, True, True, True, True, True]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "the option inputs is missing"),
        ({"inputs": {"x": {"shape": [0]}}}, "inputs.x.shape is"),
        ({"inputs": {"x": {"shape": [1], "dtype": "complex64"}}}, "inputs.x.dtype is 'complex64'"),
    ],
)
def test_a_program_needs_a_declared_input(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        loaded("torchscript", scripted(Sums(), tmp_path / "sums.pt"), **options)


def test_a_program_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the program's file was not found"):
        loaded("torchscript", tmp_path / "none.pt", inputs={"x": {"shape": [1]}})


@pytest.mark.parametrize("name", ["classifier", "tagger", "ranker", "pictures"])
def test_warm_up_runs_samples(name: str, request: pytest.FixtureRequest) -> None:
    runtime = {
        "classifier": "text-classification",
        "tagger": "token-classification",
        "ranker": "reranking",
        "pictures": "image-classification",
    }[name]
    made = served()
    made.settings = ModelSettings(name="m", runtime=runtime, source=str(request.getfixturevalue(name)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        load(made, device="cpu", report=lambda *_: None)
    assert made.speed.batches > 0
