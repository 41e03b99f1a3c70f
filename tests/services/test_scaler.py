"""`batchyard scaler` as it runs in a cluster: decisions in the database, and consumers left to others."""

import signal
import subprocess
from pathlib import Path

from batchyard.store.open import open_store
from tests.services.up import command, environment, eventually

CONFIG = """
[models.moody]
runtime = "batchyard_consumers.samples:Moody"
[pools.one]
models = ["moody"]
min = 1
[pools.two]
models = ["moody"]
min = 2
max = 2
"""


def test_decisions_are_written_down_and_no_consumer_is_started(tmp_path: Path) -> None:
    (tmp_path / "batchyard.toml").write_text(CONFIG)
    subprocess.run(command("migrate"), cwd=tmp_path, env=environment(), check=True, capture_output=True, timeout=60)
    store = open_store("sqlite", state_dir=tmp_path / ".batchyard")
    scaler = subprocess.Popen(command("scaler"), cwd=tmp_path, env=environment(), stdin=subprocess.PIPE)
    try:
        assert eventually(lambda: len(store.decisions()) == 2)
        assert [(made.pool, made.replicas, made.live) for made in store.decisions()] == [("one", 1, 0), ("two", 2, 0)]
        assert store.consumers() == []
        scaler.send_signal(signal.SIGTERM)
        assert scaler.wait(30) == 0
    finally:
        scaler.kill()
        scaler.communicate()
        store.close()
