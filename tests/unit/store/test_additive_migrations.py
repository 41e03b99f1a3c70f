"""Old code works on a newer schema: after the first one a migration only adds, and what it adds has a default."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import batchyard_migrations
from batchyard.store import migrate

FOLDER = Path(batchyard_migrations.__file__).parent / "versions"
LATER = sorted(FOLDER.glob("0*.py"))[1:]
ADDING = {"add_column", "create_table", "create_index"}


def steps(file: Path) -> list[ast.Call]:
    """The operations of `upgrade`."""
    [upgrade] = [
        node
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "upgrade"
    ]
    calls = [node for node in ast.walk(upgrade) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func).startswith("op.")]


@pytest.mark.parametrize("file", LATER, ids=lambda file: file.stem)
def test_a_migration_only_adds(file: Path) -> None:
    for step in steps(file):
        name = ast.unparse(step.func).removeprefix("op.")
        told = f"{file.name}: {ast.unparse(step)[:200]}; what takes away begins a new thousand: 1000_name.py"
        assert name in ADDING, told
        if name == "add_column":
            column = ast.unparse(step.args[1])
            assert "nullable=True" in column or "server_default" in column, f"{told} (old code inserts without it)"
        if name == "create_index":
            assert "unique=True" not in ast.unparse(step), told


def test_revisions_are_numbers_in_order() -> None:
    numbers = [file.stem[:4] for file in sorted(FOLDER.glob("[0-9]*.py"))]
    assert all(number.isdecimal() for number in numbers)
    assert migrate.newest() == numbers[-1]


@pytest.mark.parametrize(
    ("found", "fits"),
    [("0005", True), ("0006", True), ("0999", True), ("1000", False), ("0004", False), ("0001", False), (None, False)],
)
def test_a_newer_schema_of_the_same_thousand_fits(
    monkeypatch: pytest.MonkeyPatch, found: str | None, fits: bool
) -> None:
    monkeypatch.setattr(migrate, "newest", lambda: "0005")
    assert migrate.fits(found) is fits
