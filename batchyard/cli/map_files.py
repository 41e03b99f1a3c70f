"""The files of `batchyard map`: inputs line by line, results line by line, and how far a run has come.

Beside OUT stands OUT.progress, which names the key of the bulk and the cursor up to which OUT has every result. It is
replaced only after OUT has been flushed, so it never promises more than OUT holds; what OUT holds beyond it is known
from the indexes of its lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click
import msgspec

_decode = msgspec.json.Decoder().decode
_HEAD_BYTES = 1 << 20


class MapProgress(msgspec.Struct, kw_only=True):
    """What OUT.progress holds."""

    model: str
    source: str
    """Fingerprint of the inputs."""
    key: str
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


def fingerprint(path: Path) -> str:
    """Names the content of a file of any size without reading all of it: its length, its head and its tail."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_HEAD_BYTES))
        file.seek(max(0, size - _HEAD_BYTES))
        digest.update(file.read())
    return digest.hexdigest()[:32]


def read_inputs(file: IO[bytes], *, name: str, text: bool) -> Iterator[Any]:
    """The inputs of a file: every line that is not blank, as JSON or, with `text`, as a string."""
    for number, line in enumerate(file, start=1):
        stripped = line.strip()
        if not stripped:
            continue
        try:
            yield stripped.decode() if text else _decode(stripped)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            hint = "" if text else " (for a file of plain texts there is --text)"
            raise click.ClickException(f"{name}, line {number}: {error}{hint}") from error


def count_inputs(path: Path, *, text: bool) -> int:
    """How many inputs a file has, after reading it through: a bad line is found before anything is submitted."""
    with path.open("rb") as file:
        return sum(1 for _ in read_inputs(file, name=path.name, text=text))


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
