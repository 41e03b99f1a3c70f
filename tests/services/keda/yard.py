"""A cluster's worth of processes from what is rendered: an API, a scaler, and for each pool a Deployment and KEDA."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
from sqlalchemy import make_url

from batchyard.store.open import open_store
from tests.faults.proxy import proxy
from tests.servers.processes import free_port
from tests.services.keda.autoscaler import Autoscaler
from tests.services.keda.cluster import Deployment, annotations_api
from tests.services.keda.sources import ExternalPush, MetricsApi, Source, TriggerFailed
from tests.services.up import command, environment
from tests.unit.scaler.rendering import by_name, container_of, rendered

REPOSITORY = Path(__file__).parents[3]
PROTO = REPOSITORY / "scaler/batchyard_scaler/external/externalscaler.proto"
REPLICA = Path(__file__).with_name("replica.py")
WAIT_SECONDS = 120.0
MOST = {"polled": 2, "pushed": 2}
CONFIG = """
[database]
url = "postgresql+psycopg://db/batchyard"
[broker]
url = "redis://cache/0"
[storage]
url = "file://{shared}/payloads"
[queues]
lease_seconds = 3
[kubernetes]
volumes = ["payloads:{shared}"]
trigger = "{trigger}"
[models.polled]
runtime = "batchyard_consumers.samples:Moody"
batch_budget = 1
[models.pushed]
runtime = "batchyard_consumers.samples:Moody"
batch_budget = 1
[pools.polled]
models = ["polled"]
device = "cpu"
max = 2
idle_seconds = 1
[pools.pushed]
models = ["pushed"]
device = "cpu"
max = 2
idle_seconds = 1
"""


class Yard:
    """A cluster's worth of processes: an API, a scaler, and for each pool a Deployment and KEDA."""

    def __init__(self, folder: Path, *, database: str, broker: str, closing: ExitStack) -> None:
        self.folder = folder
        self.between = closing.enter_context(proxy(_socket_of(database)))
        """Processes reach the database through it; the test itself does not."""
        reached = make_url(database).set(host="127.0.0.1", port=self.between.port, query={})
        self.direct_database = database
        database = reached.render_as_string(hide_password=False)
        self.secrets = {"BATCHYARD_DATABASE__URL": database, "BATCHYARD_BROKER__URL": broker}
        shared = folder / "shared"
        shared.mkdir()
        self.objects = {
            trigger: by_name(rendered(folder, CONFIG.format(shared=shared, trigger=trigger)))
            for trigger in ("metrics-api", "external-push")
        }
        config = self.objects["external-push"]["ConfigMap", "batchyard-config"]["data"]["batchyard.toml"]
        (folder / "pod.toml").write_text(config)
        self.ports = {
            "batchyard-api.batchyard.svc:8080": free_port(),
            "batchyard-scaler.batchyard.svc:9090": free_port(),
        }
        self.closing = closing
        self.store = open_store(self.direct_database, state_dir=folder / "state")
        closing.callback(self.store.close)
        self.deployments: dict[str, Deployment] = {}
        self.autoscalers: dict[str, Autoscaler] = {}
        self.sources: dict[str, Source] = {}
        (folder / "token").write_text("token")
        pods = lambda: [pod for one in self.deployments.values() for pod in one.pods]  # noqa: E731
        self.cluster_url = closing.enter_context(annotations_api(pods))

    # --- processes ---

    def variables(self, **more: str) -> dict[str, str]:
        own = {"BATCHYARD_CONFIG": str(self.folder / "pod.toml"), "BATCHYARD_STATE": str(self.folder / "state")}
        return environment(**self.secrets, **own, **more)

    def run(self, *arguments: str) -> str:
        done = subprocess.run(command(*arguments), env=self.variables(), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def start(self, name: str, arguments: Sequence[str], variables: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(arguments, env=dict(variables), stdout=log, stderr=log, cwd=REPOSITORY)
        self.closing.callback(_end, process)
        return process

    def start_api(self) -> None:
        bind = f"127.0.0.1:{self.ports['batchyard-api.batchyard.svc:8080']}"
        keyed = {"BATCHYARD_SERVER__BIND": bind, "BATCHYARD_SERVER__REQUIRE_KEYS": "true"}
        rendered_command = container_of(self.objects["metrics-api"]["Deployment", "batchyard-api"])["command"]
        self.start("api", command(*rendered_command[1:]), self.variables(**keyed))
        key = self.run("keys", "create", "--scope", "jobs", "--scope", "admin")
        self.api = httpx.Client(base_url=f"http://{bind}", headers={"authorization": f"Bearer {key}"}, timeout=30)
        self.closing.callback(self.api.close)
        self.until(self._is_ready)

    def _is_ready(self) -> bool:
        try:
            return self.api.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def start_scaler(self) -> "subprocess.Popen[bytes]":
        [*rendered_command, bind] = container_of(self.objects["external-push"]["Deployment", "batchyard-scaler"])[
            "command"
        ]
        assert bind == "0.0.0.0:9090"
        bind = f"127.0.0.1:{self.ports['batchyard-scaler.batchyard.svc:9090']}"
        return self.start("scaler", command(*rendered_command[1:], bind), self.variables())

    def start_pod(self, arguments: Sequence[str], variables: Mapping[str, str], name: str) -> "subprocess.Popen[bytes]":
        """The container's own variables, but for the places of its image."""
        cluster_api = {"CLUSTER_URL": self.cluster_url, "CLUSTER_TOKEN": str(self.folder / "token")}
        paths = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
        places = {**self.variables(**cluster_api), "PYTHONPATH": paths}
        assert {name for name in variables if name in places} >= {"BATCHYARD_CONFIG", "BATCHYARD_STATE", *self.secrets}
        return self.start(name, [sys.executable, str(REPLICA), *arguments[1:]], {**variables, **places})

    # --- KEDA ---

    def make_pools(self) -> None:
        """One for each trigger."""
        token, folder = self.run("keys", "create", "--scope", "scale"), self.folder / "proto"

        def address(name: str) -> str:
            return f"127.0.0.1:{self.ports[name]}"

        self._make_pool("polled", "metrics-api", lambda told: MetricsApi(told, token=token, address=address))
        self._make_pool(
            "pushed", "external-push", lambda told: ExternalPush(told, proto=PROTO, folder=folder, address=address)
        )

    def _make_pool(self, pool: str, trigger: str, source: Callable[[Mapping[str, str]], Source]) -> None:
        objects, name = self.objects[trigger], f"batchyard-worker-{pool}"
        spec = objects["ScaledObject", name]["spec"]
        assert spec["scaleTargetRef"]["name"] == name
        [rendered_trigger] = spec["triggers"]
        deployment = Deployment(objects["Deployment", name], secrets=self.secrets, start=self.start_pod)
        self.closing.callback(deployment.close)
        self.deployments[pool] = deployment
        self.sources[pool] = source(rendered_trigger["metadata"])
        self.autoscalers[pool] = Autoscaler(spec, self.sources[pool], deployment)

    def run_keda(self) -> None:
        bodies: list[Callable[[], None]] = [one.run for one in self.autoscalers.values()]
        pushing = self.sources["pushed"]
        assert isinstance(pushing, ExternalPush)
        bodies.append(lambda: self.autoscalers["pushed"].push(pushing.activations))
        threads = [threading.Thread(target=body, daemon=True) for body in bodies]
        for thread in threads:
            thread.start()

        def stop() -> None:
            for one in self.autoscalers.values():
                one.stop()
            for source in self.sources.values():
                source.close()  # type: ignore[attr-defined]
            for thread in threads:
                thread.join(10)

        self.closing.callback(stop)

    # --- what is seen ---

    def submit(self, model: str, seconds: float, *, jobs: int) -> list[str]:
        """Somebody waits for them: nothing is held back to save a start."""
        body = {"inputs": [{"do": "sleep", "value": seconds}] * jobs, "priority": 9, "deadline_seconds": 300}
        answer = self.api.post(f"/v1/models/{model}/jobs", json=body).raise_for_status().json()
        return list(answer["ids"])

    def pin(self, pool: str, *, replicas: int) -> None:
        self.api.post(f"/v1/pools/{pool}/pin", json={"replicas": replicas}).raise_for_status()

    def unpin(self, pool: str) -> None:
        self.api.post(f"/v1/pools/{pool}/unpin").raise_for_status()

    def finish(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Wait until all have succeeded."""
        found: list[dict[str, Any]] = []

        def finished() -> bool:
            found[:] = self.api.post("/v1/jobs/lookup", json={"ids": ids}).raise_for_status().json()["jobs"]
            return all(job["state"] == "succeeded" for job in found)

        self.until(finished)
        return found

    def sizes(self) -> dict[str, int]:
        return {pool: one.replicas for pool, one in self.deployments.items()}

    def decided(self, pool: str) -> float | None:
        try:
            return self.sources[pool].look()[0]
        except TriggerFailed:
            return None

    def lands_on(self, **wanted: int) -> None:
        """Until the pools have these sizes, which are the decisions."""
        self.until(lambda: {pool: self.decided(pool) for pool in wanted} == wanted)
        self.until(lambda: {pool: self.sizes()[pool] for pool in wanted} == wanted)
        assert {pool: self.decided(pool) for pool in wanted} == wanted

    def until(self, condition: Callable[[], bool]) -> None:
        give_up = time.monotonic() + WAIT_SECONDS
        while not condition():
            if time.monotonic() > give_up:
                raise AssertionError(f"not within {WAIT_SECONDS:g} s; {self.histories()}\n{self._logs()}")
            time.sleep(0.05)

    def fail_looks(self, *, more_than: int) -> None:
        """Until KEDA has failed so often, and the autoscaler has asked as often."""
        seen = {pool: (one.failed_looks, one.syncs) for pool, one in self.autoscalers.items()}
        self.until(
            lambda: all(
                one.failed_looks > seen[pool][0] + more_than and one.syncs > seen[pool][1] + more_than
                for pool, one in self.autoscalers.items()
            )
        )

    @contextmanager
    def without_the_store(self) -> Iterator[None]:
        """Connections break, and new ones hang."""
        self.between.hold_up()
        self.between.cut()
        yield
        self.between.let_through()
        self.between.cut()
        self.until(self._is_ready)

    def histories(self) -> dict[str, list[tuple[int, str]]]:
        return {pool: one.history for pool, one in self.deployments.items()}

    def _logs(self) -> str:
        return "\n".join(f"--- {log.name}\n{log.read_text()[-1500:]}" for log in sorted(self.folder.glob("*.log")))

    def let_decisions_age(self) -> None:
        """By a minute and more, which nobody has to wait for."""
        with psycopg.connect(self.direct_database.replace("+psycopg", "")) as session:
            session.execute("UPDATE decisions SET decided_at = decided_at - 61000")


def _socket_of(database: str) -> Path:
    return Path(str(make_url(database).query["host"])) / ".s.PGSQL.5432"


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
