"""Nothing of ours unpickles, evaluates text, or hands a line to a shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchyard.broker.application import celery_app

ROOT = Path(__file__).parents[2]
ROOMS = ("batchyard", "producer", "consumers", "scaler", "migrations")
MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
CALLS = {"eval", "exec", "torch.save", "numpy.save", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen"}


def faults(source: str) -> Iterator[str]:
    """What runs whatever a file, a message or a text says."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"line {node.lineno}: {name}" for name in names if name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if (
                called in CALLS
                or (called == "torch.load" and given.get("weights_only") != "True")
                or given.get("allow_pickle") == "True"
                or given.get("shell") == "True"
                or (called.endswith(".from_pretrained") and "Tokenizer" not in called and not _is_safe(called, given))
            ):
                yield f"line {node.lineno}: {ast.unparse(node)}"


def _is_safe(called: str, given: dict[str | None, str]) -> bool:
    """Of transformers' classes only models have weights."""
    return given.get("use_safetensors") == "True" or any(
        part in called for part in ("Processor", "Config", "Extractor")
    )


@pytest.mark.parametrize("room", ROOMS)
def test_no_file_runs_what_others_wrote(room: str) -> None:
    found = {str(file.relative_to(ROOT)): list(faults(file.read_text())) for file in (ROOT / room).rglob("*.py")}
    assert len(found) > 1
    assert {file: told for file, told in found.items() if told} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from marshal import loads",
        "import joblib.memory",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "np.load(file, allow_pickle=True)",
        "yaml.load(text)",
        "eval(text)",
        "subprocess.run(line, shell=True)",
        "AutoModel.from_pretrained(source)",
        "AutoModel.from_pretrained(source, use_safetensors=False)",
    ],
)
def test_each_way_to_do_so_is_found(source: str) -> None:
    assert list(faults(source))


def test_the_safe_ways_pass() -> None:
    assert not list(
        faults("torch.load(f, weights_only=True); yaml.safe_load(t); m.from_pretrained(s, use_safetensors=True)")
    )


def test_messages_are_json_alone() -> None:
    app = celery_app("memory://")
    assert (app.conf.accept_content, app.conf.task_serializer, app.conf.event_serializer) == (["json"], "json", "json")
    assert app.conf.result_backend is None
