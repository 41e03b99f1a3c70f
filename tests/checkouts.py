"""Other states of this repository, unpacked beside it, and how processes are made to run their code."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
ROOTS = (".", "producer", "consumers", "scaler", "migrations")
"""Where its packages are found, from its folder on."""


def unpack(commit: str, folder: Path) -> None:
    """Put the files of a commit into a folder."""
    with tarfile.open(fileobj=io.BytesIO(git("archive", "--format=tar", commit))) as archive:
        archive.extractall(folder, filter="data")


def search_path(folder: Path) -> str:
    """The PYTHONPATH with which processes run the code in a folder, before what is installed."""
    return os.pathsep.join(os.fspath((folder / root).resolve()) for root in ROOTS)


def git(*arguments: str) -> bytes:
    """What a git command prints; AssertionError, with what it says, where it fails."""
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, check=False)
    if done.returncode:
        raise AssertionError(
            "this needs the repository with its whole history (no shallow clone, no bare copy of the files): "
            f"git {' '.join(arguments)}: {done.stderr.decode().strip()}"
        )
    return done.stdout
