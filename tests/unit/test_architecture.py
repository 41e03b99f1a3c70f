"""ARCHITECTURE.md has a line for each source file, and names none that is not there."""

import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PACKAGES = [
    "batchyard",
    "producer/batchyard_producer",
    "consumers/batchyard_consumers",
    "scaler/batchyard_scaler",
    "migrations/batchyard_migrations",
]


def named() -> Iterator[str]:
    """What the tables name; their paths are relative to a folder of their heading."""
    text = (REPOSITORY / "ARCHITECTURE.md").read_text(encoding="utf-8").partition("## File by file")[2]
    for section in text.split("\n### ")[1:]:
        heading, _, body = section.partition("\n")
        folders = re.findall(r"`([\w/]+/)`", heading)
        for path in re.findall(r"`([\w/]+\.py)`", body):
            places = [folder + path for folder in folders if (REPOSITORY / folder / path).is_file()]
            yield from places[:1] or [f"{heading}: {path}"]


def test_every_source_file_has_a_line_and_every_line_its_file() -> None:
    sources = {
        str(file.relative_to(REPOSITORY))
        for package in PACKAGES
        for file in (REPOSITORY / package).rglob("*.py")
        if file.name != "__init__.py"
    }
    assert sorted(named()) == sorted(sources)
