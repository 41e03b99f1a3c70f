"""The README's Python is type-checked: `tests/typing` holds copies for mypy, and these must be equal."""

from pathlib import Path

import pytest

from tests.readme import README, example

REPOSITORY = README.parent
COPIES = {"quickstart.py": "with Client()", "my_models.py": "(Model)", "webhooks.py": "webhooks.verify"}


@pytest.mark.parametrize(("name", "having"), COPIES.items())
def test_the_type_checked_copy_is_what_the_readme_shows(name: str, having: str) -> None:
    assert (REPOSITORY / "tests" / "typing" / name).read_text(encoding="utf-8") == example("python", having=having)


def test_every_python_example_is_type_checked() -> None:
    assert README.read_text(encoding="utf-8").count("```python\n") == len(COPIES)
    assert {file.name for file in Path(REPOSITORY / "tests" / "typing").glob("*.py")} == set(COPIES)
