"""A busy consumer's pod is marked, by the calls that Kubernetes takes."""

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import certifi
import httpx
import pytest

from batchyard.broker import Broker
from batchyard.jobs import Lane, Submission
from batchyard.settings import ModelSettings, PoolSettings, Settings
from batchyard.testing import memory_store
from batchyard_consumers.claiming import HeldTicket
from batchyard_consumers.consumer import Consumer
from batchyard_consumers.pod import IDLE_SECONDS, RETRY_SECONDS, Pod, PodMark, own_pod

COST, KEEP = "controller.kubernetes.io/pod-deletion-cost", "karpenter.sh/do-not-disrupt"


class Cluster:
    """Stands in for the API of Kubernetes: keeps one pod's annotations as a merge patch changes them."""

    def __init__(self, folder: Path) -> None:
        self.token = folder / "token"
        self.token.write_text("first\n")
        self.annotations: dict[str, str] = {"kept": "as it is"}
        self.calls = 0
        self.status = 200
        client = httpx.Client(base_url="https://cluster", transport=httpx.MockTransport(self._answer))
        self.pod = Pod(client, namespace="ml", name="worker-1", token=self.token)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.calls += 1
        assert (request.method, request.url.path) == ("PATCH", "/api/v1/namespaces/ml/pods/worker-1")
        assert request.headers["content-type"] == "application/merge-patch+json"
        assert request.headers["authorization"] == f"Bearer {self.token.read_text().strip()}"
        if self.status == 200:
            for key, value in json.loads(request.content)["metadata"]["annotations"].items():
                self.annotations.pop(key, None)
                if value is not None:
                    self.annotations[key] = value
        return httpx.Response(self.status, json={})


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


class Looking:
    """A mark with a clock and a consumer that the test moves."""

    def __init__(self, cluster: Cluster) -> None:
        self.now = 100.0
        self.busy = False
        self.mark = PodMark(cluster.pod, is_busy=lambda: self.busy, stopping=threading.Event(), clock=lambda: self.now)

    def look(self, *, busy: bool, after: float = 0.5) -> None:
        self.busy = busy
        self.now += after
        self.mark.look()


def test_a_busy_pod_costs_more_and_is_not_disrupted(cluster: Cluster) -> None:
    looking = Looking(cluster)
    looking.look(busy=True)
    assert cluster.annotations == {"kept": "as it is", COST: "100", KEEP: "true"}


def test_the_mark_is_taken_off_after_a_while_without_work(cluster: Cluster) -> None:
    looking = Looking(cluster)
    looking.look(busy=True)
    looking.look(busy=False, after=IDLE_SECONDS - 1)
    assert cluster.annotations[COST] == "100"
    looking.look(busy=False, after=1)
    assert cluster.annotations == {"kept": "as it is", COST: "0"}


def test_steady_work_and_steady_rest_say_nothing(cluster: Cluster) -> None:
    looking = Looking(cluster)
    for number in range(50):
        looking.look(busy=number % 2 == 0, after=IDLE_SECONDS / 2)
    assert cluster.calls == 1
    for _ in range(50):
        looking.look(busy=False)
    assert cluster.calls == 2


def test_a_restarted_container_takes_off_what_the_one_before_it_left(cluster: Cluster) -> None:
    cluster.annotations[COST] = "100"
    Looking(cluster).look(busy=False)
    assert cluster.annotations[COST] == "0"


def test_what_is_not_allowed_is_tried_again_later_with_the_token_of_then(cluster: Cluster) -> None:
    looking = Looking(cluster)
    cluster.status = 403
    for _ in range(10):
        looking.look(busy=True)
    assert cluster.calls == 1
    cluster.status = 200
    cluster.token.write_text("second")
    looking.look(busy=True, after=RETRY_SECONDS)
    assert cluster.annotations[COST] == "100"


def test_a_token_that_is_gone_does_no_harm(cluster: Cluster) -> None:
    cluster.token.unlink()
    Looking(cluster).look(busy=True)
    assert cluster.calls == 0


INSIDE = {
    "KUBERNETES_SERVICE_HOST": "fd00::1",
    "KUBERNETES_SERVICE_PORT": "6443",
    "POD_NAMESPACE": "ml",
    "POD_NAME": "worker-1",
}


def test_a_consumer_finds_its_pod_by_its_variables_and_its_account(tmp_path: Path) -> None:
    assert own_pod(INSIDE, account=tmp_path) is None
    (tmp_path / "token").write_text("t")
    (tmp_path / "ca.crt").write_text(Path(certifi.where()).read_text(encoding="utf-8"))
    for missing in ("KUBERNETES_SERVICE_HOST", "POD_NAMESPACE", "POD_NAME"):
        assert own_pod({key: value for key, value in INSIDE.items() if key != missing}, account=tmp_path) is None
    found = own_pod(INSIDE, account=tmp_path)
    assert found is not None
    assert found.url == "https://[fd00::1]:6443/api/v1/namespaces/ml/pods/worker-1"


class Source:
    """Brings no tickets: the consumer claims idle, straight from the store."""

    def done(self, tickets: Sequence[HeldTicket]) -> None: ...
    def refresh(self) -> None: ...
    def reconnect(self) -> None: ...
    def stop(self) -> None: ...


def test_a_consumer_marks_its_pod_while_it_holds_jobs(cluster: Cluster, tmp_path: Path) -> None:
    model = ModelSettings(name="m", runtime="batchyard_consumers.samples:Moody")
    pool = PoolSettings(name="p", models=("m",), device="cpu")
    settings = Settings(state_dir=tmp_path, models=(model,), pools=(pool,))
    store, ended = memory_store(), threading.Event()
    consumer = Consumer(
        settings,
        pool,
        store=store,
        broker=Broker("memory://"),
        source=Source(),
        on_end=lambda code: ended.set(),
        pod=cluster.pod,
    )
    [version] = store.models()
    slow = json.dumps({"do": "sleep", "value": 2.0}).encode()
    submission = Submission(tenant_id=1, queue_id=version.queue_ids[Lane.FIRM], inputs=[slow], costs=[1])

    consumer.start()
    try:
        store.submit([submission])
        end = time.monotonic() + 60
        while cluster.annotations.get(KEEP) != "true" and time.monotonic() < end:
            time.sleep(0.02)
        assert cluster.annotations.get(KEEP) == "true"
    finally:
        consumer.drain(reason="the test is over")
        assert ended.wait(60)
