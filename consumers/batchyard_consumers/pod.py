"""The pod that a consumer runs in, where that is in Kubernetes: marked while the consumer is busy.

A pool that shrinks loses the pods that cost least to delete first, and Karpenter does not take a node away under one
that is not to be disrupted. Both only spare work: a busy consumer that has to go drains.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx

from batchyard.telemetry import log_event

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
LOOK_SECONDS = 0.5
IDLE_SECONDS = 10.0
"""Without a job before the mark is taken off: every change is a write that the whole control plane hears of."""
RETRY_SECONDS = 30.0
CALL_SECONDS = 5.0

BUSY = {"controller.kubernetes.io/pod-deletion-cost": "100", "karpenter.sh/do-not-disrupt": "true"}
IDLE = {"controller.kubernetes.io/pod-deletion-cost": "0", "karpenter.sh/do-not-disrupt": None}

log = logging.getLogger(__name__)


class Pod:
    """One pod, by the API of Kubernetes."""

    def __init__(self, client: httpx.Client, *, namespace: str, name: str, token: Path) -> None:
        self._client = client
        self.url = str(client.base_url.join(f"/api/v1/namespaces/{namespace}/pods/{name}"))
        self._token = token
        """Exchanged for a fresh one every hour or so, and therefore read for each call."""

    def annotate(self, annotations: Mapping[str, str | None]) -> None:
        """Set these, and remove those that are None; httpx.HTTPError or OSError where that does not succeed."""
        headers = {
            "authorization": f"Bearer {self._token.read_text(encoding='utf-8').strip()}",
            "content-type": "application/merge-patch+json",
        }
        patch = {"metadata": {"annotations": dict(annotations)}}
        self._client.patch(self.url, json=patch, headers=headers).raise_for_status()


def own_pod(environ: Mapping[str, str], *, account: Path = ACCOUNT) -> Pod | None:
    """As the variables of the rendered manifests tell; None outside of Kubernetes, or without an account there."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
    namespace, name = environ.get("POD_NAMESPACE"), environ.get("POD_NAME")
    token, authority = account / "token", account / "ca.crt"
    if not host or not namespace or not name or not token.is_file() or not authority.is_file():
        return None
    client = httpx.Client(
        base_url=f"https://{f'[{host}]' if ':' in host else host}:{port}",
        verify=ssl.create_default_context(cafile=str(authority)),
        timeout=CALL_SECONDS,
        trust_env=False,
    )
    return Pod(client, namespace=namespace, name=name, token=token)


class PodMark:
    """Keeps the mark of the pod as `is_busy` says; `run` is the body of its thread."""

    def __init__(
        self,
        pod: Pod,
        *,
        is_busy: Callable[[], bool],
        stopping: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pod = pod
        self._is_busy = is_busy
        self._stopping = stopping
        self._clock = clock
        self._marked: bool | None = None
        """None: not known, as after a restart of the container."""
        self._busy_at = clock()
        self._next_try_at = clock()

    def run(self) -> None:
        """Look until the consumer drains; then the pod has to go anyway."""
        while not self._stopping.wait(LOOK_SECONDS):
            self.look()

    def look(self) -> None:
        """Change the mark where it is due. What fails is tried again later; the consumer works meanwhile."""
        now = self._clock()
        busy = self._is_busy()
        if busy:
            self._busy_at = now
        is_due = busy != self._marked and (busy or self._marked is None or now - self._busy_at >= IDLE_SECONDS)
        if not is_due or now < self._next_try_at:
            return
        try:
            self._pod.annotate(BUSY if busy else IDLE)
            self._marked = busy
        except (httpx.HTTPError, OSError) as error:
            self._next_try_at = now + RETRY_SECONDS
            log_event(log, "pod_not_marked", level=logging.WARNING, busy=busy, url=self._pod.url, reason=str(error))
