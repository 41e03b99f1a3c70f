"""Where a model's weights are, and the digest that pins a version to them."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from batchyard.errors import ModelLoadError
from batchyard.model import Model
from batchyard.settings import ModelSettings

PACKAGE = "package:"
FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


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


def verify(settings: ModelSettings, model: Model) -> None:
    """Compare the source with the digest that the configuration pins, where it does. ModelLoadError, OSError.

    Of a file the pinned digest is that of its bytes; of a folder that of all its files by name and content.
    """
    if not settings.digest:
        return
    if not is_local(model.source):
        raise ModelLoadError(
            f"{settings.qualified}: digest is set, and the source {model.source!r} is no file or folder here to compare"
            " with: fetch it first, or pin a `revision` in the options instead"
        )
    found = "sha256:" + source_digest(Path(model.source).expanduser())
    if found != settings.digest:
        raise ModelLoadError(
            f"{settings.qualified}: its source has the digest {found} and the configuration pins {settings.digest}:"
            " it is not loaded"
        )


def source_digest(source: Path) -> str:
    """SHA-256, in hexadecimal."""
    if source.is_file():
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    total = hashlib.sha256()
    _add_files(total, source)
    return total.hexdigest()


@contextmanager
def without_pickle() -> Iterator[None]:
    """Have torch read tensors alone, also where a library asks it to unpickle what there is, as `torch.export` does:
    unpickling runs what a file says. For the whole process, so for one loader at a time."""
    before = os.environ.get(FORCE_WEIGHTS_ONLY)
    os.environ[FORCE_WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FORCE_WEIGHTS_ONLY]
        else:
            os.environ[FORCE_WEIGHTS_ONLY] = before


def origin(model: Model) -> dict[str, Any]:
    """How the libraries are told to fetch a model: nothing where it is on this machine, else the pinned revision."""
    return {
        "local_files_only": is_local(model.source),
        "revision": model.options.get("revision"),
        "trust_remote_code": bool(model.options.get("trust_remote_code", False)),
    }


def attention(model: Model) -> dict[str, Any]:
    """How the libraries are told to compute attention: the option `attention`, such as "flash_attention_2"; without it
    they take the kernels of torch, which choose FlashAttention by themselves, wherever a model can be read so."""
    chosen = model.options.get("attention")
    return {} if chosen is None else {"attn_implementation": str(chosen)}


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
        _add_files(total, Path(model.source).expanduser())
    else:
        total.update(model.source.encode())
    return total.hexdigest()


def damage(model: Model) -> str:
    """Which weights of a local source are cut off or damaged, as words to append; what libraries say does not name
    them. Looks at the frame of each file alone."""
    if not is_local(model.source):
        return ""
    root = Path(model.source).expanduser()
    damaged = [f"{path} ({path.stat().st_size:,} bytes)" for _, path in _files(root) if _is_damaged(path)]
    return f" (cut off or damaged: {', '.join(damaged)})" if damaged else ""


def _is_damaged(path: Path) -> bool:
    if path.suffix in {".pt", ".pt2", ".pth"}:
        return not zipfile.is_zipfile(path)
    if path.suffix != ".safetensors":
        return False
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return False
    except (SafetensorError, OSError):
        return True


def _add_files(total: hashlib._Hash, source: Path) -> None:
    for name, path in _files(source):
        total.update(msgspec.json.encode([name, path.stat().st_size]))
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())


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
