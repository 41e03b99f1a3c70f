"""The docstrings of this Python's standard library, read from its sources: real text that everyone has."""

from __future__ import annotations

import ast
import inspect
import random
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LEAST_LETTERS = 40
MOST_LETTERS = 1200
_LEFT_OUT = {
    "__pycache__",
    "dist-packages",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}


class Passage(NamedTuple):
    """One paragraph of a docstring."""

    where: str
    """What it documents: "json.dumps"."""
    text: str


def standard_library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def collect(count: int, *, folder: Path | None = None) -> list[Passage]:
    """`count` different paragraphs, drawn evenly and the same every time; fewer where there are not so many."""
    seen: dict[str, Passage] = {}
    for path in sorted(_sources(folder or standard_library())):
        for passage in passages_of(path, name=_module_name(path, folder or standard_library())):
            seen.setdefault(passage.text, passage)
    found = list(seen.values())
    if len(found) > count:
        chosen = sorted(random.Random(0).sample(range(len(found)), count))
        found = [found[index] for index in chosen]
    return found


def passages_of(path: Path, *, name: str) -> Iterator[Passage]:
    """The paragraphs of one source file that read as prose."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    for where, node in _documented(tree, name):
        docstring = ast.get_docstring(node, clean=False)
        for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring or "")):
            text = " ".join(paragraph.split())
            if LEAST_LETTERS <= len(text) <= MOST_LETTERS and _is_prose(text):
                yield Passage(where, text)


_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _documented(tree: ast.Module, name: str) -> Iterator[tuple[str, _Documented]]:
    """The module, and its public classes and functions at any depth of classes."""
    pending: list[tuple[str, _Documented]] = [(name, tree)]
    while pending:
        where, node = pending.pop(0)
        yield where, node
        if isinstance(node, ast.Module | ast.ClassDef):
            pending += [
                (f"{where}.{child.name}", child)
                for child in node.body
                if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                and not child.name.startswith("_")
            ]


def _is_prose(text: str) -> bool:
    """Mostly letters, and no interpreter session."""
    return not text.startswith(">>>") and sum(map(str.isalpha, text)) > 0.6 * len(text)


def _sources(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.is_dir():
            if entry.name not in _LEFT_OUT and not entry.name.startswith((".", "lib-", "config-")):
                yield from _sources(entry)
        elif entry.suffix == ".py" and not entry.name.startswith("_"):
            yield entry


def _module_name(path: Path, folder: Path) -> str:
    return ".".join(path.relative_to(folder).with_suffix("").parts)
