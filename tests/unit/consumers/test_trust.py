"""Weights are data: nothing that is loaded by name runs code of its file, and a pinned digest is compared first."""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from batchyard.errors import ModelLoadError
from batchyard.settings import ModelSettings
from batchyard_consumers.loading import load
from batchyard_consumers.runtimes.sources import source_digest, without_pickle
from batchyard_consumers.served import Served
from batchyard_consumers.speed import Speed
from tests.unit.consumers.test_runtimes import exported
from tests.unit.consumers.tiny import bert

ECHO = "batchyard_consumers.samples:NoOp"


class Touch:
    """A pickle of this makes a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self.file,))


def start(runtime: str, source: Path, **changes: Any) -> None:
    settings = ModelSettings(name="m", runtime=runtime, source=str(source), **changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        load(
            Served(version_id=1, settings=settings, queue_ids={}, speed=Speed()),
            device="cpu",
            report=lambda *_: None,
        )


@pytest.mark.parametrize(
    ("runtime", "head"),
    [("sentence-transformers", "BertModel"), ("text-classification", "BertForSequenceClassification")],
)
def test_pickled_weights_are_refused_unread(tmp_path: Path, runtime: str, head: str) -> None:
    folder, touched = bert(tmp_path / "model", head), tmp_path / "touched"
    start(runtime, folder)
    [weights] = folder.glob("*.safetensors")
    weights.unlink()
    torch.save({"x": Touch(touched)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="safetensors"):
        start(runtime, folder)
    assert not touched.exists()
    pickle.loads(pickle.dumps(Touch(touched)))
    assert touched.exists(), "it would have run"


def test_pickles_inside_an_exported_program_are_refused_unread(tmp_path: Path) -> None:
    rows = {"dynamic_shapes": ({0: torch.export.Dim("rows")},)}
    file = exported(torch.nn.Linear(2, 2), tmp_path / "good.pt2", torch.zeros(2, 2), **rows)
    options = {"inputs": {"x": {"dtype": "float32", "shape": [2]}}}
    start("torch-export", file, options=options)
    touched, bad = tmp_path / "touched", tmp_path / "bad.pt2"
    with zipfile.ZipFile(file) as good, zipfile.ZipFile(bad, "w") as made:
        for name in good.namelist():
            content = good.read(name)
            if name.endswith("config.json"):
                content = content.replace(b'"use_pickle": false', b'"use_pickle": true')
            elif "/data/weights/" in name:
                torch.save(Touch(touched), tmp_path / "pickled")
                content = (tmp_path / "pickled").read_bytes()
            made.writestr(name, content)
    with pytest.raises(ModelLoadError, match="cannot load"):
        start("torch-export", bad, options=options)
    assert not touched.exists()


def test_whoever_asks_torch_to_unpickle_gets_tensors_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "good")
    torch.save(Touch(tmp_path / "touched"), tmp_path / "bad")
    for before in (None, "0"):
        monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
        if before is not None:
            monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", before)
        with without_pickle():
            assert torch.load(tmp_path / "good", weights_only=False)["weight"].tolist() == [1, 1]
            with pytest.raises(pickle.UnpicklingError):
                torch.load(tmp_path / "bad", weights_only=False)
        assert not (tmp_path / "touched").exists()
    torch.load(tmp_path / "bad", weights_only=False)
    assert (tmp_path / "touched").exists(), "and not a moment longer"


def test_a_pinned_digest_is_compared_before_anything_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    digest = "sha256:" + hashlib.sha256(b"weights").hexdigest()
    start(ECHO, file, digest=digest)
    file.write_bytes(b"others")
    with pytest.raises(ModelLoadError, match=f"pins {digest}: it is not loaded"):
        start("tests.unit.consumers.test_loading:Unloadable", file, digest=digest)


def test_a_folders_digest_is_of_all_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a").write_text("1")
    first = source_digest(folder)
    start(ECHO, folder, digest=f"sha256:{first}")
    (folder / "deep" / "a").rename(folder / "deep" / "b")
    assert source_digest(folder) != first
    (folder / "deep" / "b").rename(folder / "deep" / "a")
    assert source_digest(folder) == first
    (folder / "more").write_text("")
    with pytest.raises(ModelLoadError, match="it is not loaded"):
        start(ECHO, folder, digest=f"sha256:{first}")


def test_a_digest_of_what_is_elsewhere_cannot_be_compared() -> None:
    with pytest.raises(ModelLoadError, match="pin a `revision`"):
        start(ECHO, Path("organisation/model"), digest="sha256:" + "0" * 64)
