"""Rendered files in a folder, beside which may stand others' files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from batchyard.errors import Conflict
from batchyard_scaler.render.manifests import MARK


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Write them, and remove what an earlier rendering left there beyond them, such as a pool that is no more.

    Conflict, and nothing written, where a file of the same name was not rendered.
    """
    try:
        there = [path for path in folder.glob("*.yaml") if path.is_file()]
        rendered = {path.name for path in there if path.read_text(encoding="utf-8").startswith(MARK)}
        if foreign := sorted({path.name for path in there} & set(files) - rendered):
            raise Conflict(
                f"{folder} has {', '.join(foreign)} of someone else's: move it, or name another folder by --out"
            )
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        for name in rendered - set(files):
            (folder / name).unlink()
    except OSError as error:
        raise Conflict(f"cannot write to {folder}: {error.strerror or error}") from error
