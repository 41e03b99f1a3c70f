from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from batchyard.errors import Conflict, ModelLoadError
from batchyard.model import Model
from batchyard.settings import ModelSettings
from batchyard.testing import memory_store
from batchyard_consumers.catalog import config_of, versions_in
from batchyard_consumers.loading import load
from batchyard_consumers.runtimes import find_model, make_model
from batchyard_consumers.runtimes.sources import digest_of, resolve_source
from batchyard_consumers.samples import NoOp
from batchyard_consumers.served import Served
from tests.unit.consumers.jobs import served

HERE = "tests.unit.consumers.test_loading"


class Told(Model):
    """Says what it was told."""

    def load(self, device: str) -> None:
        self.told = (device, self.source, self.options)

    def forward(self, items: Sequence[Any]) -> Any:
        return items


class Unloadable(Model):
    def load(self, device: str) -> None:
        raise RuntimeError("no weights")


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
    ],
)
def test_a_runtime_that_is_none_says_why(runtime: str, words: str) -> None:
    with pytest.raises(ModelLoadError, match=words):
        find_model(settings(runtime))


@pytest.mark.parametrize(
    ("name", "words"),
    [("Unloadable", "no weights"), ("SampledBadly", "first batch"), ("BadSchema", "no JSON Schema")],
)
def test_a_model_that_cannot_serve_says_why(name: str, words: str) -> None:
    made = version(f"{HERE}:{name}")
    with pytest.raises(ModelLoadError, match=words):
        load(made, device="cpu", report=lambda *_: None)
    assert made.model is None


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
