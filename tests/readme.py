"""The README's examples, cut out of it, so that tests run and type-check what readers copy."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def example(language: str, *, having: str) -> str:
    """The one example in `language` that has these words; fails where there is none, or more than one."""
    [found] = [
        text for of, text in _FENCE.findall(README.read_text(encoding="utf-8")) if of == language and having in text
    ]
    return str(found)
