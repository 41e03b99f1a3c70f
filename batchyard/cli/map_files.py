"""The files of `batchyard map`: inputs line by line, results line by line, and how far a run has come.

Beside OUT stands OUT.progress, which names the key of the bulk and the cursor up to which OUT has every result. It is
replaced only after OUT has been flushed, so it never promises more than OUT holds; what OUT holds beyond it is known
from the indexes of its lines. It also has the digest of the inputs: of all of them where they are a file, which is read
through before anything is submitted, and of those taken so far where they come from standard input.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click
import msgspec

_decode = msgspec.json.Decoder().decode


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Names the first so many inputs by their digest."""

    inputs: int
    digest: str


class MapProgress(msgspec.Struct, kw_only=True):
    """What OUT.progress holds."""

    model: str
    key: str
    mark: Mark
    bulk_id: str | None = None
    cursor: int = 0
    finished: bool = False


class _Line(msgspec.Struct):
    index: int
    error: Any = None


_decode_line = msgspec.json.Decoder(_Line).decode


def progress_path(out: Path) -> Path:
    return out.with_name(out.name + ".progress")


def load_progress(out: Path) -> MapProgress | None:
    path = progress_path(out)
    try:
        return msgspec.json.decode(path.read_bytes(), type=MapProgress)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise click.ClickException(f"{path} is damaged ({error}); delete it and {out} to start anew") from error


def save_progress(out: Path, progress: MapProgress) -> None:
    path = progress_path(out)
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(msgspec.json.encode(progress) + b"\n")
    fresh.replace(path)


class Inputs:
    """The inputs of a file: every line that is not blank, as JSON or, with `text`, as a string.

    Iterated once, by any one thread; `mark` may be asked for by others meanwhile. Where an earlier run's mark is
    expected and these are other inputs, iterating raises ClickException as soon as that is known.
    """

    def __init__(self, file: IO[bytes], *, name: str, text: bool, expected: Mark | None = None) -> None:
        self._file = file
        self._name = name
        self._text = text
        self._expected = expected
        self._taking = threading.Lock()
        self._taken = 0
        self._digest = hashlib.sha256(b"text\n" if text else b"json\n")

    def mark(self) -> Mark:
        """Of what has been taken so far."""
        with self._taking:
            return Mark(inputs=self._taken, digest=self._digest.hexdigest())

    def __iter__(self) -> Iterator[Any]:
        expected = self._expected
        for number, line in enumerate(self._file, start=1):
            stripped = line.strip()
            if not stripped:
                continue
            value = self._read(stripped, number)
            with self._taking:
                self._digest.update(b"%b\n" % stripped)
                self._taken += 1
            if expected is not None and self._taken == expected.inputs and self.mark() != expected:
                raise self._differ(f"its first {self._taken:,} inputs are others")
            yield value
        if expected is not None and self._taken < expected.inputs:
            raise self._differ(f"it has {self._taken:,} inputs, and there were {expected.inputs:,}")

    def _read(self, line: bytes, number: int) -> Any:
        try:
            return line.decode() if self._text else _decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            hint = "" if self._text else " (for a file of plain texts there is --text)"
            raise click.ClickException(f"{self._name}, line {number}: {error}{hint}") from error

    def _differ(self, how: str) -> click.ClickException:
        return click.ClickException(f"{self._name} is not what this run began with: {how}; give it the same inputs")


def survey(file: IO[bytes], *, name: str, text: bool) -> Mark:
    """Read all inputs through: a bad line is found before anything is submitted."""
    inputs = Inputs(file, name=name, text=text)
    for _ in inputs:
        pass
    return inputs.mark()


class Seen:
    """Which indexes OUT already has, and how many of them are errors. One bit each."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self.count = 0
        self.failed = 0

    def add(self, index: int) -> bool:
        """False where it was there before."""
        byte, bit = index >> 3, 1 << (index & 7)
        if byte >= len(self._bits):
            self._bits.extend(bytes(max(byte + 1 - len(self._bits), len(self._bits), 1024)))
        if self._bits[byte] & bit:
            return False
        self._bits[byte] |= bit
        self.count += 1
        return True

    def missing(self, count: int) -> Iterator[int]:
        """The indexes below `count` that it does not have."""
        return (
            index
            for index in range(count)
            if index >> 3 >= len(self._bits) or not self._bits[index >> 3] & 1 << (index & 7)
        )


def read_results(out: Path) -> Seen:
    """What OUT holds; a last line that was torn by a crash is cut off."""
    seen = Seen()
    keep = 0
    with out.open("r+b") as file:
        for line in file:
            try:
                read = _decode_line(line) if line.endswith(b"\n") else None
            except msgspec.MsgspecError:
                read = None
            if read is None:
                break
            keep += len(line)
            seen.add(read.index)
            seen.failed += read.error is not None
        file.seek(0, 2)
        if file.tell() != keep:
            file.truncate(keep)
    return seen
