"""Where a model's weights are, and the digest that pins a version to them."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path

import msgspec

from batchyard.errors import ModelLoadError
from batchyard.model import Model
from batchyard.settings import ModelSettings

PACKAGE = "package:"
READ_BYTES = 4 * 1024 * 1024


def resolve_source(source: str, *, model: str) -> str:
    """Turn `package:NAME/path` into the folder or file inside that installed package; all else stays as it is."""
    if not source.startswith(PACKAGE):
        return source
    package, _, inside = source.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(package.replace("-", "_")) if package else None
    roots = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not roots:
        raise ModelLoadError(f"{model}: source is {source!r}, and no package {package!r} is installed")
    for root in roots:
        path = (Path(root) / inside).resolve()
        if path.is_relative_to(Path(root).resolve()) and path.exists():
            return str(path)
    raise ModelLoadError(f"{model}: source is {source!r}, and the package {package!r} holds no {inside!r}")


def is_local(source: str) -> bool:
    """Whether a resolved source is a folder or file of this machine, so that nothing need be fetched."""
    return bool(source) and Path(source).expanduser().exists()


def digest_of(settings: ModelSettings, model: Model) -> str:
    """SHA-256, in hexadecimal, over what makes a version what it is: runtime, options, code and weights.

    Code is the source of the module that defines the class, for a user's own model. Weights are the files of a local
    source, by name and content; `revision` in the options pins a source that is fetched from elsewhere.
    """
    total = hashlib.sha256()
    total.update(msgspec.json.encode([settings.runtime, dict(settings.options)], order="deterministic"))
    if ":" in settings.runtime:
        _add_code(total, type(model))
    if is_local(model.source):
        for name, path in _files(Path(model.source).expanduser()):
            total.update(msgspec.json.encode([name, path.stat().st_size]))
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    else:
        total.update(model.source.encode())
    return total.hexdigest()


def _add_code(total: hashlib._Hash, kind: type[Model]) -> None:
    try:
        file = inspect.getsourcefile(kind)
    except TypeError:
        file = None
    if file is not None and Path(file).is_file():
        total.update(Path(file).read_bytes())
    total.update(kind.__qualname__.encode())


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """Every file under a folder in a fixed order, or the file itself; hidden ones and caches left out."""
    if root.is_file():
        yield root.name, root
        return
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in inside.parts):
            yield inside.as_posix(), path
