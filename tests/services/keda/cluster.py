"""What a cluster does with a Deployment: pods as processes of this machine, their annotations, and who has to go.

Written from Kubernetes' documentation alone: nothing of batchyard is imported here.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ZONE = "topology.kubernetes.io/zone"
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"


class Pod:
    """One process, started as a Deployment's template says."""

    def __init__(self, name: str, *, zone: str, run: Callable[[], subprocess.Popen[bytes]]) -> None:
        self.name = name
        self.zone = zone
        self._run = run
        self.process = run()
        self.started_at = time.monotonic()
        self.annotations: dict[str, str] = {}
        self.was_killed = False

    @property
    def deletion_cost(self) -> int:
        return int(self.annotations.get(DELETION_COST, "0"))

    def crash(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """As the kubelet does with a container that has ended."""
        self.process = self._run()

    def end(self, grace_seconds: float) -> None:
        self.process.terminate()
        try:
            self.process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            self.was_killed = True
            self.process.kill()
            self.process.wait()


Start = Callable[[Sequence[str], Mapping[str, str], str], "subprocess.Popen[bytes]"]
"""From a command, its variables and the pod's name to a process."""


class Deployment:
    """Replicas of one template. `history` has every change: how many, and by whom."""

    def __init__(self, document: Mapping[str, Any], *, secrets: Mapping[str, str], start: Start) -> None:
        self.name: str = document["metadata"]["name"]
        self._namespace: str = document["metadata"]["namespace"]
        self._template = document["spec"]["template"]["spec"]
        self._secrets = secrets
        self._start = start
        self._changing = threading.RLock()
        self._ending: list[threading.Thread] = []
        self._made = 0
        self.pods: list[Pod] = []
        self.gone: list[Pod] = []
        self.history: list[tuple[int, str]] = []

    @property
    def replicas(self) -> int:
        return len(self.pods)

    def scale(self, replicas: int, *, by: str) -> None:
        """At once; who goes first is said by the order of the ReplicaSet's controller: cost, then the newest."""
        with self._changing:
            if replicas == len(self.pods):
                return
            self.history.append((replicas, by))
            while len(self.pods) < replicas:
                self.pods.append(self._new_pod())
            victims = sorted(self.pods, key=lambda pod: (pod.deletion_cost, -pod.started_at))
            for pod in victims[: len(self.pods) - replicas]:
                self.pods.remove(pod)
                self.gone.append(pod)
                grace = float(self._template["terminationGracePeriodSeconds"])
                ending = threading.Thread(target=pod.end, args=(grace,))
                ending.start()
                self._ending.append(ending)

    def wait_for_the_gone(self) -> None:
        for ending in self._ending:
            ending.join()

    def close(self) -> None:
        for pod in [*self.pods, *self.gone]:
            pod.process.kill()
            pod.process.wait()
        self.wait_for_the_gone()

    def _new_pod(self) -> Pod:
        self._made += 1
        name, zone = f"{self.name}-{self._made}", f"zone-{self._made % 2}"
        fields = {
            "metadata.name": name,
            "metadata.namespace": self._namespace,
            f"metadata.labels['{ZONE}']": zone,
        }
        [container] = self._template["containers"]
        variables = {one["name"]: self._value(one, fields) for one in container["env"]}
        return Pod(name, zone=zone, run=lambda: self._start(container["command"], variables, name))

    def _value(self, variable: Mapping[str, Any], fields: Mapping[str, str]) -> str:
        if "value" in variable:
            return str(variable["value"])
        source = variable["valueFrom"]
        return fields[source["fieldRef"]["fieldPath"]] if "fieldRef" in source else self._secrets[variable["name"]]


@contextmanager
def annotations_api(pods: Callable[[], Sequence[Pod]]) -> Iterator[str]:
    """The one call of Kubernetes' API that a pod may make: a merge patch of its annotations. Gives the URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PATCH(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            name = self.path.rpartition("/")[2]
            found = [pod for pod in pods() if pod.name == name]
            for pod in found:
                for key, value in json.loads(body)["metadata"]["annotations"].items():
                    pod.annotations.pop(key, None)
                    if value is not None:
                        pod.annotations[key] = value
            self.send_response(200 if found else 404)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
