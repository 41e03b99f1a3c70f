"""A model whose results serve other jobs, in a whole system: who computes is killed, and still nobody waits in vain."""

import os
import signal
from pathlib import Path

import httpx
import pytest

from batchyard import Client
from tests.services.up import eventually, running_up

pytestmark = pytest.mark.slow

HELD = """
import os, time
from pathlib import Path
from batchyard.model import Model

class Held(Model):
    \"\"\"Notes each pass, and computes no further while there is a file `hold`.\"\"\"

    def forward(self, items):
        with open("passes", "a") as file:
            file.write(f"{os.getpid()} {len(items)}\\n")
        while Path("hold").exists():
            time.sleep(0.01)
        return [{"of": item, "by": os.getpid(), "at": time.time()} for item in items]
"""
CONFIG = """
[queues]
lease_seconds = 3
[models.held]
runtime = "held:Held"
cache_seconds = 600
[pools.local]
models = ["held"]
device = "cpu"
min = 2
max = 2
"""


def test_fifty_equal_jobs_are_one_computation_that_survives_its_consumer(tmp_path: Path) -> None:
    (tmp_path / "held.py").write_text(HELD)
    hold, passes = tmp_path / "hold", tmp_path / "passes"
    hold.touch()
    passes.touch()
    with running_up(tmp_path, config=CONFIG) as up, Client(up.url) as client:
        jobs = [*client.submit_many("held", ["same"] * 25), *client.submit_many("held", ["same"] * 25)]
        ids = [job.id for job in jobs]
        reason = "another job that computes the same goes first"

        def one_runs() -> bool:
            seen = client.lookup(ids)
            return sorted(job.waits_because or job.state for job in seen) == [reason] * 49 + ["running"]

        assert eventually(one_runs, seconds=60)
        assert eventually(lambda: len(passes.read_text().splitlines()) == 1)
        os.kill(int(passes.read_text().split()[0]), signal.SIGKILL)
        # Another one takes over, or the same once more, whichever is claimed first.
        assert eventually(lambda: len(passes.read_text().splitlines()) == 2, seconds=60)
        hold.unlink()
        results = [job.result(timeout=60) for job in jobs]
        assert results == [results[0]] * 50
        assert passes.read_text().splitlines()[1] == f"{results[0]['by']} 1"
        assert len(passes.read_text().splitlines()) == 2

        [computed] = [job for job in jobs if not job.data.cached]
        assert {job.data.computed_by for job in jobs} == {None, computed.id}
        assert {job.data.device_seconds for job in jobs if job is not computed} == {0.0}
        assert {job.data.failures for job in jobs} == {0}

        again = client.submit("held", "same")
        assert again.result(timeout=60) == results[0]
        assert again.data.computed_by == computed.id

        def counts_hits() -> bool:
            lines = httpx.get(f"{up.url}/metrics").text.splitlines()
            return any(line.startswith("batchyard_cache_jobs_total{") and 'outcome="hit"' in line for line in lines)

        assert eventually(counts_hits)
