"""The peers, each installed into an environment of its own under `.bench/` and driven as its documentation says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.benchmarks.cpu import CpuMeter
from tests.benchmarks.report import Measurement
from tests.servers import redis_server, valkey_server
from tests.servers.processes import ServerUnavailable, free_port, running, server_folder

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / ".bench"
REDIS_DURABILITY = "redis without persistence: jobs and results in memory only"


def environment(name: str) -> Path:
    """The bin folder of a peer's virtual environment, made anew where its requirements file has changed."""
    requirements = HERE / "peers" / f"{name}-requirements.txt"
    folder = ENVIRONMENTS / name
    stamp = folder / "installed-requirements.txt"
    if not stamp.exists() or stamp.read_text() != requirements.read_text():
        print(f"installing {name} into {folder} ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run(
            [str(folder / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", "-r", str(requirements)],
            check=True,
        )
        stamp.write_text(requirements.read_text())
    return folder / "bin"


@contextmanager
def redis_url() -> Iterator[str]:
    """A Redis of Debian where there is one, else the Valkey that batchyard embeds."""
    try:
        with redis_server() as server:
            yield server.url
    except ServerUnavailable:
        with valkey_server() as server:
            yield server.url


def celery(*, module: str, jobs: int) -> Measurement:
    """Celery (or celery-batches) with results in Redis, two worker processes."""
    binaries = environment("celery")
    with redis_url() as url, server_folder("peer") as folder:
        env = {"PEER_BROKER": url, "PYTHONPATH": str(HERE / "peers")}
        worker = [str(binaries / "celery"), "-A", module, "worker", "-c", "2", "-l", "ERROR"]
        worker += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        with running(worker, directory=folder, ready=lambda: True, environment=env) as process:
            return _drive(
                [str(binaries / "python"), str(HERE / "peers/celery_client.py"), module, str(jobs)], env, [process.pid]
            )


def ray(*, jobs: int) -> Measurement:
    """Ray Serve's task consumer, one replica, results in Redis."""
    binaries = environment("celery")
    with redis_url() as url:
        env = {"PEER_BROKER": url, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
        return _drive([str(binaries / "python"), str(HERE / "peers/ray_serve.py"), str(jobs)], env, [])


@contextmanager
def infinity(*, model_folder: Path, dtype: str) -> Iterator[str]:
    """infinity serving the model over HTTP; yields its URL."""
    binaries = environment("infinity")
    port = free_port()
    command = [
        str(binaries / "infinity_emb"),
        "v2",
        "--model-id",
        str(model_folder),
        "--engine",
        "torch",
        "--device",
        "cpu",
    ]
    command += [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--dtype",
        dtype,
        "--served-model-name",
        "m",
        "--no-bettertransformer",
    ]
    env = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    url = f"http://127.0.0.1:{port}"
    with (
        server_folder("infinity") as folder,
        running(command, directory=folder, ready=lambda: _answers(url), environment=env, start_seconds=120),
    ):
        yield url


def drive_infinity(url: str, *, inputs: Sequence[str], size: int) -> Measurement:
    """Every text through infinity, `size` texts a request, one request after the other."""
    start = time.perf_counter()
    for first in range(0, len(inputs), size):
        body = json.dumps({"model": "m", "input": list(inputs[first : first + size])}).encode()
        request = urllib.request.Request(f"{url}/embeddings", data=body, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as answer:
            found = json.load(answer)["data"]
        if len(found) != len(inputs[first : first + size]):
            raise RuntimeError("infinity answered another number of embeddings than it was given")
    return Measurement(
        jobs=len(inputs), seconds=time.perf_counter() - start, durability="none: results only in the answer"
    )


def _drive(command: Sequence[str], env: dict[str, str], workers: list[int]) -> Measurement:
    """Run a peer's client to its end; its one line of JSON says what it measured."""
    meter = CpuMeter(lambda _: "workers")
    meter.start(workers)
    client = subprocess.Popen(
        command, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    output, errors = client.communicate(timeout=600)
    cpu = meter.stop() if workers and psutil.pid_exists(workers[0]) else {}
    lines = [line for line in output.splitlines() if line.startswith('{"jobs"')]
    if client.returncode != 0 or not lines:
        raise RuntimeError(f"{command[1]} ended with {client.returncode}:\n{errors[-2000:]}")
    said = json.loads(lines[-1])
    if said["wrong"]:
        raise RuntimeError(f"{command[1]}: {said['wrong']} results do not belong to their input")
    if "client_cpu_seconds" in said:
        cpu["client"] = said["client_cpu_seconds"]
    extra = {"published_per_second": said["jobs"] / said["submit_seconds"]} if "submit_seconds" in said else {}
    return Measurement(
        jobs=said["jobs"], seconds=said["seconds"], cpu_seconds=cpu, durability=REDIS_DURABILITY, extra=extra
    )


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        time.sleep(0.1)
        return False
