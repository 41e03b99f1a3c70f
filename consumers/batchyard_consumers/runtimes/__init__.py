"""How a model gets into memory: the runtimes by name, and a user's own class by dotted path.

To add a runtime, write a `Model` subclass in a module of this package and name it in RUNTIMES and
in `batchyard.settings`. Beyond what `Model`
says a runtime may define

- `pads = False`: a batch costs the sum of its items, not the longest times their number;
- `samples(cost) -> list`: items to warm up with, of about that cost together;
- what `precision.py` says, to compute in other dtypes than float32, and `compiling.py`, to be compiled.
"""

from __future__ import annotations

import importlib
from typing import Any

from batchyard.errors import BatchyardError, ModelLoadError
from batchyard.model import ContinuousModel, Model
from batchyard.settings import ModelSettings
from batchyard_consumers.runtimes.sources import resolve_source

_HERE = "batchyard_consumers.runtimes"
RUNTIMES = {
    "image-classification": f"{_HERE}.images:ImageClassification",
    "kserve": f"{_HERE}.proxies:KServe",
    "openai": f"{_HERE}.proxies:OpenAI",
    "reranking": f"{_HERE}.classification:Reranking",
    "sentence-transformers": f"{_HERE}.embeddings:SentenceEmbeddings",
    "text-classification": f"{_HERE}.classification:TextClassification",
    "text-generation": f"{_HERE}.generation:TextGeneration",
    "token-classification": f"{_HERE}.tagging:TokenClassification",
    "torch-export": f"{_HERE}.programs:TorchExport",
    "torchscript": f"{_HERE}.programs:TorchScript",
}
"""Name in `batchyard.toml`, of `batchyard.settings.RUNTIMES` → where the class is; imported when first used."""


def find_model(settings: ModelSettings) -> type[Model]:
    """The class that `runtime` names. ModelLoadError says what is wrong and what is allowed."""
    path = RUNTIMES.get(settings.runtime, settings.runtime)
    module_name, colon, class_name = path.partition(":")
    if not colon:
        allowed = ", ".join(sorted(RUNTIMES))
        raise ModelLoadError(
            f'{settings.qualified}: runtime is {settings.runtime!r}; allowed are {allowed}, or "package.module:Class"'
        )
    try:
        found: Any = importlib.import_module(module_name)
        for name in class_name.split("."):
            found = getattr(found, name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's module may raise anything when it is imported, and call sys.exit()
        raise ModelLoadError(f"{settings.qualified}: cannot import {path}: {words(error)}") from error
    if not (isinstance(found, type) and issubclass(found, Model)):
        raise ModelLoadError(f"{settings.qualified}: {path} is not a subclass of batchyard.Model")
    needed = ("join", "step", "leave") if issubclass(found, ContinuousModel) else ("forward",)
    if missing := [name for name in needed if getattr(found, name) is getattr(ContinuousModel, name)]:
        raise ModelLoadError(f"{settings.qualified}: {path} must define {', '.join(missing)}")
    return found


def make_model(settings: ModelSettings) -> Model:
    """An instance, told its source and options, not yet loaded. ModelLoadError."""
    kind = find_model(settings)
    try:
        model = kind()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's class may raise anything
        raise ModelLoadError(f"{settings.qualified}: {kind.__qualname__}() raised {words(error)}") from error
    model.source = resolve_source(settings.source, model=settings.qualified)
    model.options = dict(settings.options)
    model.dtype = settings.dtype
    model.compile = settings.compile
    return model


def words(error: BaseException) -> str:
    """An exception in a line, for people."""
    if isinstance(error, BatchyardError):
        return error.message
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
