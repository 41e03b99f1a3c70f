"""Lines of a CSV file as fields, and what is wrong with them: every fault with its line number."""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from batchyard.errors import InvalidTrace

SHOWN_FAULTS = 10
GZIP = b"\x1f\x8b"

Row = tuple[int, Sequence[str]]
"""Line number and fields."""


class Faults:
    """Gathers what is wrong with a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._faults: list[str] = []

    def add(self, line: int, given: str, expected: str) -> None:
        self._faults.append(f"line {line}: {given}; expected {expected}")

    def number(self, line: int, name: str, text: str, *, least: float) -> float | None:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if least <= value < math.inf:
            return value
        expected = f"a number of {least:g} or more" if least <= 0 else "a number above 0"
        self.add(line, f"{name} is {text.strip() or 'empty'}", expected)
        return None

    def end(self, *, rows: int) -> None:
        """Raises InvalidTrace where something was wrong, or there were no rows."""
        if not self._faults and not rows:
            self._faults.append("line 2: the file ends; expected a row")
        if self._faults:
            more = len(self._faults) - SHOWN_FAULTS
            shown = self._faults[:SHOWN_FAULTS] + ([f"and {more:,} more"] if more > 0 else [])
            raise InvalidTrace(self._path.name, shown)


def rows_of(path: Path) -> Iterator[Row]:
    """Lines that are not empty, plain or gzipped; fields are separated by what the first line has the most of: commas,
    semicolons or tabs. InvalidTrace where it is no such file."""
    try:
        with path.open("rb") as file:
            is_zipped = file.read(len(GZIP)) == GZIP
            file.seek(0)
            # Spreadsheets begin their files with a mark of the encoding.
            content = gzip.GzipFile(fileobj=file) if is_zipped else file
            text = io.TextIOWrapper(content, encoding="utf-8-sig", newline="")
            first = text.readline()
            delimiter = max(",;\t", key=first.count)
            reader = csv.reader(text, delimiter=delimiter)
            if fields := next(csv.reader([first], delimiter=delimiter), []):
                yield 1, fields
            for fields in reader:
                if fields:
                    yield 1 + reader.line_num, fields
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise InvalidTrace(path.name, [f"cannot be read as CSV: {error}"]) from error


def unix_seconds(text: str) -> float | None:
    """Of a date and time, in UTC where it says nothing else; None where it is none."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
