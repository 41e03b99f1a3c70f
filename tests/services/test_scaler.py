"""`batchyard scaler` as it runs in a cluster: decisions in the database, and consumers left to others."""

import json
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

from batchyard import Client
from batchyard.store.open import open_store
from tests.services.up import command, environment, eventually, running_up

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


def scaler_process(folder: Path, name: str) -> subprocess.Popen[bytes]:
    with (folder / name).open("wb") as log:
        return subprocess.Popen(
            command("scaler"), cwd=folder, env=environment(), stdin=subprocess.PIPE, stdout=log, stderr=log
        )


def test_another_scaler_takes_over_from_one_that_is_stopped_and_from_one_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "batchyard.toml").write_text(CONFIG)
    subprocess.run(command("migrate"), cwd=tmp_path, env=environment(), check=True, capture_output=True, timeout=60)
    store = open_store("sqlite", state_dir=tmp_path / ".batchyard")
    scalers = {name: scaler_process(tmp_path, name) for name in ("a", "b")}

    def changes(name: str) -> list[bool]:
        """Of leadership, as the scaler told them."""
        told = (json.loads(line) for line in (tmp_path / name).read_text().splitlines())
        return [event["leads"] for event in told if event["event"] == "leadership_changed"]

    def let_the_lease_lapse() -> None:
        """Its five seconds, which nobody has to wait for."""
        with closing(sqlite3.connect(tmp_path / ".batchyard/batchyard.db", timeout=30)) as database, database:
            database.execute("UPDATE leases SET until = 0 WHERE name = 'scaler'")

    def decides() -> bool:
        """Somebody does, from now on."""
        return max((made.decided_at_ms for made in store.decisions()), default=0) > since_ms

    try:
        since_ms = 0
        assert eventually(lambda: decides() and sorted(map(changes, scalers)) == [[False], [True]], seconds=40)
        [first] = [name for name in scalers if changes(name) == [True]]
        [second] = scalers.keys() - {first}

        scalers[first].send_signal(signal.SIGSTOP)
        since_ms = store.now_ms()
        let_the_lease_lapse()
        assert eventually(lambda: decides() and changes(second) == [False, True], seconds=30)
        scalers[first].send_signal(signal.SIGCONT)
        assert eventually(lambda: changes(first) == [True, False], seconds=30)
        assert changes(second) == [False, True]

        scalers[second].kill()
        scalers[second].wait(30)
        since_ms = store.now_ms()
        let_the_lease_lapse()
        assert eventually(lambda: decides() and changes(first) == [True, False, True], seconds=30)
        assert not any(made.is_stale(now_ms=store.now_ms()) for made in store.decisions())
    finally:
        for scaler in scalers.values():
            scaler.kill()
            scaler.communicate()
        store.close()


LAPTOP = """
[queues]
lease_seconds = 3
[models.moody]
runtime = "batchyard_consumers.samples:Moody"
batch_budget = 1
[pools.steady]
models = ["moody"]
device = "cpu"
min = 1
max = 2
drain_seconds = 2
[pools.cheap]
models = ["moody"]
capacity = "spot"
device = "cpu"
max = 1
price_per_hour = 0.1
drain_seconds = 2
"""


def test_a_burst_starts_a_consumer_at_once_and_one_on_spot_comes_and_goes_without_losing_a_job(tmp_path: Path) -> None:
    """A laptop's day: a consumer is warm, a burst comes, and spot capacity helps out for 20 of every 23
    seconds."""
    (tmp_path / "spot.csv").write_text("0,1\n20,0\n23,1\n")
    arguments = ("--spot-trace", "spot.csv", "--spot-notice", "5")
    with running_up(tmp_path, config=LAPTOP, arguments=arguments) as up, Client(url=up.url) as client:
        assert eventually(lambda: client.model("moody").versions[0].warm, seconds=60)
        assert len(up.children("worker", "steady")) == 1

        began = time.monotonic()
        burst = client.submit_many("moody", [{"do": "sleep", "value": 0.05}] * 200)
        assert eventually(lambda: len(up.children("worker", "steady")) == 2, seconds=20)
        assert time.monotonic() - began < 2.0
        assert [job.wait().state for job in burst] == ["succeeded"] * 200

        tolerant = client.submit_many("moody", [{"do": "sleep", "value": 0.2}] * 200, tolerant=True)
        assert eventually(lambda: any("consumer_preempted" in line for line in up.lines), seconds=60)
        assert [job.wait().state for job in tolerant] == ["succeeded"] * 200
        [_, cheap] = client.pools()
        assert cheap.spent is not None
        assert cheap.decision is not None
        told = 'batchyard_preempted_consumers{pool="cheap",zone="spot"}'
        assert eventually(lambda: told in client.metrics(), seconds=40)
