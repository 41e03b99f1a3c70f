import subprocess
import sys
from pathlib import Path

import pytest

from batchyard.store.open import database_url

OPENS = """
import sys
sys.modules[sys.argv[1]] = None  # as if it were not installed
from pathlib import Path
from batchyard.errors import MissingExtra
from batchyard.store.open import open_store
try:
    open_store("sqlite", state_dir=Path("."))
except MissingExtra as missing:
    print(missing)
"""


@pytest.mark.parametrize("absent", ["sqlalchemy", "pysqlite3"])
def test_what_is_not_installed_is_named_by_its_extra(absent: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OPENS, absent], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert 'pip install "batchyard[producer]"' in done.stdout


def test_urls_but_the_short_one_are_taken_as_they_are(tmp_path: Path) -> None:
    assert database_url("sqlite", state_dir=tmp_path) == f"sqlite:///{tmp_path / 'batchyard.db'}"
    assert database_url("postgresql+psycopg://h/d", state_dir=tmp_path) == "postgresql+psycopg://h/d"
