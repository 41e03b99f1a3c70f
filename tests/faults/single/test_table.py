"""The table of faults names tests that exist, and every test of this folder."""

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]
NAMED = re.findall(r"`(tests/\S+\.py)::(test_\w+)`", (HERE / "README.md").read_text())


def names_in(path: Path) -> set[str]:
    parts = ast.walk(ast.parse(path.read_text()))
    functions = (part for part in parts if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef))
    return {function.name for function in functions if function.name.startswith("test_")}


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_named_test_exists(path: str, name: str) -> None:
    assert name in names_in(REPOSITORY / path)


def test_every_row_names_a_test() -> None:
    rows = [line for line in (HERE / "README.md").read_text().splitlines() if line.startswith("| ")]
    assert len(rows) - 1 == len(NAMED)


def test_every_test_of_a_fault_stands_in_the_table() -> None:
    here = {name for path in HERE.glob("test_*.py") if path != Path(__file__) for name in names_in(path)}
    unnamed = here - {name for _, name in NAMED}
    assert unnamed == {"test_nobody_leads_and_numbers_of_processes_are_new_after_a_restore"}
