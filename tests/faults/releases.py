"""The release before this one, as the history has it: what ran before the newest change of the schema."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.checkouts import REPOSITORY, git, search_path, unpack
from tests.faults.members import variables

VERSIONS = "migrations/batchyard_migrations/versions"
TRIES = 20
_KNOWS = """
import batchyard, batchyard.store.migrate, batchyard_consumers.worker, batchyard_producer.app
print(batchyard.__file__, batchyard.store.migrate.newest())
"""


def unpack_last_release(folder: Path) -> Path:
    """The code of the last commit before the newest migration whose processes start, in a folder within this one."""
    [newest, *_] = sorted((REPOSITORY / VERSIONS).glob("[0-9]*.py"), reverse=True)
    added = git("log", "--diff-filter=A", "--format=%H", "--", f"{VERSIONS}/{newest.name}").decode().split()
    # A migration that is not committed yet comes after everything that is.
    last = f"{added[-1]}^" if added else "HEAD"
    commits = git("rev-list", f"--max-count={TRIES}", last).decode().split()
    for commit in commits:
        code = folder / commit[:12]
        code.mkdir()
        unpack(commit, code)
        if knows(variables_of(code)) is not None:
            return code
    raise AssertionError(f"of the {len(commits)} commits up to {last} none can be imported")


def variables_of(code: Path) -> dict[str, str]:
    """The environment of a member that runs the code in a folder."""
    return {**variables(), "PYTHONPATH": search_path(code)}


def knows(environment: Mapping[str, str]) -> tuple[Path, str] | None:
    """What a process of that environment imports: the folder of its code, and the schema version that it speaks; None
    where it cannot."""
    # From elsewhere: the working directory comes before all other paths.
    done = subprocess.run([sys.executable, "-c", _KNOWS], cwd="/", env=environment, capture_output=True, text=True)
    if done.returncode:
        return None
    file, version = done.stdout.split()
    return Path(file).parents[1], version
