from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from batchyard.errors import Conflict, InvalidInput, ModelLoadError
from batchyard.model import ContinuousModel, Model
from batchyard.settings import ModelSettings
from batchyard.testing import memory_store
from batchyard_consumers.catalog import config_of, versions_in
from batchyard_consumers.loading import load
from batchyard_consumers.runtimes import find_model, make_model
from batchyard_consumers.runtimes.sources import digest_of, resolve_source
from batchyard_consumers.samples import NoOp
from batchyard_consumers.served import Served
from tests.unit.consumers.jobs import served
from tests.unit.consumers.tiny import bert

HERE = "tests.unit.consumers.test_loading"


class Told(Model):
    """Says what it was told."""

    def load(self, device: str) -> None:
        self.told = (device, self.source, self.options)

    def forward(self, items: Sequence[Any]) -> Any:
        return items


class Unloadable(Told):
    def load(self, device: str) -> None:
        raise RuntimeError("no weights")


class Quitting(Told):
    def load(self, device: str) -> None:
        raise SystemExit(4)


class Unfinished(Model):
    """Computes nothing."""


class UnfinishedLoop(ContinuousModel):
    def join(self, key: int, item: Any) -> None:
        pass


class WithExamples(Model):
    """Takes its inputs apart, as preprocessing may."""

    input_schema = {"type": "object", "examples": [{"text": "abcd"}, {"text": "abcdefgh"}]}  # noqa: RUF012

    def preprocess(self, inputs: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
        return [value.pop("text") or InvalidInput("text is empty") for value in inputs]

    def cost(self, item: Any) -> int:
        return len(item)

    def forward(self, items: Sequence[Any]) -> Any:
        return [len(item) for item in items]


class WithBadExamples(WithExamples):
    input_schema = {"examples": [{"text": ""}]}  # noqa: RUF012


class Sampled(Told):
    def samples(self, cost: int) -> list[Any]:
        return [0] * cost


class SampledBadly(Told):
    def samples(self, cost: int) -> list[Any]:
        raise RuntimeError("no shape fits")


class BadSchema(Told):
    input_schema = {"type": 5}  # noqa: RUF012


class NotAModel:
    pass


def settings(runtime: str, **changes: Any) -> ModelSettings:
    return ModelSettings(name="m", runtime=runtime, **changes)


def version(runtime: str, **changes: Any) -> Served:
    made = served()
    made.settings = settings(runtime, **changes)
    return made


def test_a_model_is_told_its_source_options_and_device() -> None:
    made = version(f"{HERE}:Told", source="somewhere", options={"a": 1})
    load(made, device="cpu", report=lambda *_: None)
    assert isinstance(made.model, Told)
    assert made.model.told == ("cpu", "somewhere", {"a": 1})
    assert made.is_plain
    assert made.is_level


@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        ("onnx", "allowed are image-classification, kserve, openai, reranking, sentence-transformers"),
        ("nowhere.at_all:Model", "cannot import"),
        (f"{HERE}:Missing", "cannot import"),
        (f"{HERE}:NotAModel", "not a subclass"),
        (f"{HERE}:Unfinished", r"must define forward$"),
        (f"{HERE}:UnfinishedLoop", "must define step, leave"),
        ("broken_syntax:Model", "SyntaxError: .*broken_syntax.py"),
        ("quits_at_import:Model", "SystemExit: 2"),
    ],
)
def test_a_runtime_that_is_none_says_why(
    runtime: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_syntax.py").write_text("def forward(:\n")
    (tmp_path / "quits_at_import.py").write_text("raise SystemExit(2)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelLoadError, match=words):
        find_model(settings(runtime))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Unloadable", "no weights"),
        ("Quitting", "SystemExit: 4"),
        ("SampledBadly", "first batch"),
        ("WithBadExamples", "first batch fails: text is empty"),
        ("BadSchema", "no JSON Schema"),
    ],
)
def test_a_model_that_cannot_serve_says_why(name: str, words: str) -> None:
    made = version(f"{HERE}:{name}")
    with pytest.raises(ModelLoadError, match=words):
        load(made, device="cpu", report=lambda *_: None)
    assert made.model is None


def test_examples_in_the_schema_warm_a_model_up() -> None:
    made = version(f"{HERE}:WithExamples")
    load(made, device="cpu", report=lambda *_: None)
    assert made.speed.is_settled
    assert made.speed.mean_cost == pytest.approx(6, abs=2)
    assert made.speed.seconds_per_job is not None


@pytest.mark.parametrize("left", [0, 5, 1000])
def test_weights_that_are_cut_off_are_named(tmp_path: Path, left: int) -> None:
    folder = bert(tmp_path / "model", "BertForSequenceClassification")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:left])
    made = version("text-classification", source=str(folder))
    with pytest.raises(ModelLoadError) as caught:
        load(made, device="cpu", report=lambda *_: None)
    assert f"cut off or damaged: {weights} ({left:,} bytes)" in caught.value.message


@pytest.mark.parametrize("runtime", ["torchscript", "torch-export"])
@pytest.mark.filterwarnings("ignore")
def test_a_program_that_is_cut_off_is_named(tmp_path: Path, runtime: str) -> None:
    file = tmp_path / "program.pt2"
    file.write_bytes(b"PK\x03\x04 and no more")
    options = {"inputs": {"x": {"shape": [2]}}}
    with pytest.raises(ModelLoadError, match=r"cut off or damaged: .*program.pt2"):
        load(version(runtime, source=str(file), options=options), device="cpu", report=lambda *_: None)


def test_samples_settle_the_budget_before_the_first_job() -> None:
    made = version(f"{HERE}:Sampled")
    load(made, device="cpu", report=lambda *_: None)
    assert made.speed.batches > 0


def test_a_package_holds_a_source() -> None:
    assert Path(resolve_source("package:batchyard/store", model="m")).name == "store"
    assert resolve_source("org/model", model="m") == "org/model"
    for source in ("package:nowhere/x", "package:batchyard/nothing", "package:batchyard/../tests", "package:"):
        with pytest.raises(ModelLoadError, match="source is"):
            resolve_source(source, model="m")


def test_the_digest_follows_weights_options_and_code(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "weights").write_bytes(b"1")

    def digest(**changes: Any) -> str:
        chosen = settings(f"{HERE}:Told", **({"source": str(tmp_path)} | changes))
        return digest_of(chosen, make_model(chosen))

    first = digest()
    assert first == digest()
    assert len({first, digest(options={"x": 1}), digest(source="elsewhere")}) == 3
    (tmp_path / ".cache").write_bytes(b"not part of it")
    assert digest() == first
    (tmp_path / "a" / "weights").write_bytes(b"2")
    assert digest() != first


def test_a_version_that_has_changed_does_not_serve() -> None:
    made = version(f"{HERE}:Told")

    def refuse(*_: object) -> None:
        raise Conflict("m@1 has another digest")

    with pytest.raises(Conflict):
        load(made, device="cpu", report=refuse)
    assert made.model is None


def _settings(models: list[ModelSettings]) -> Any:
    from batchyard.settings import Settings

    return Settings(state_dir=Path("unused"), models=tuple(models))


def test_versions_are_made_known_where_nobody_has() -> None:
    store = memory_store()
    wanted = [ModelSettings(name="a", runtime="x:Y")]
    (first,) = versions_in(store, _settings(wanted), wanted)
    assert store.models()[0].id == first.version_id
    (again,) = versions_in(store, _settings(wanted), wanted)
    assert again.version_id == first.version_id
    assert config_of(wanted[0]).model == "a"
    store.close()


def test_the_base_class_is_seen_through() -> None:
    made = served(NoOp())
    assert (made.is_plain, made.is_level, made.costs(["a", "b"])) == (True, True, [1, 1])
