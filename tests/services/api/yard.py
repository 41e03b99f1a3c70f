"""A real API server on a loopback port, and the consumer's part played by hand."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from batchyard import results
from batchyard.broker import Broker
from batchyard.errors import Unavailable
from batchyard.jobs import ClaimedJob, ErrorInfo, Outcome, State, parse_id
from batchyard.settings import DatabaseSettings, ModelSettings, QueueSettings, ServerSettings, Settings, WebhookSettings
from batchyard.store.base import JobStore, ModelConfig
from batchyard_producer.app import Api
from batchyard_producer.connections import Connection
from batchyard_producer.dispatcher import Timing

TEXT_SCHEMA = {"type": "object", "properties": {"text": {"type": "string", "maxLength": 20}}, "required": ["text"]}
MODELS = (ModelSettings(name="echo", runtime="tests:Echo"), ModelSettings(name="strict", runtime="tests:Strict"))
SERVER = ServerSettings(max_body_bytes=100_000, max_input_bytes=10_000, max_inputs=500)
QUEUES = QueueSettings(max_queued=2_000)


WEBHOOKS = WebhookSettings(allowed_networks=("127.0.0.0/8",), retry_seconds=(0.01, 0.02, 0.03), timeout_seconds=5)


class FragileStore:
    """A store whose database goes away when told to, for all methods or for some."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self.is_away = False
        self.failing: set[str] = set()
        self.asked: Counter[str] = Counter()
        """How often each method was looked up."""

    def __getattr__(self, name: str) -> Any:
        if name in self.failing or (self.is_away and name not in {"now_ms", "durability"}):
            raise Unavailable("the database is away")
        self.asked[name] += 1
        return getattr(self._store, name)


class Yard:
    """One served API. `client` speaks to it; `finish` does what consumers do."""

    def __init__(self, *, store: JobStore, fragile: FragileStore, broker: Broker, url: str) -> None:
        self.store = store
        self.database = fragile
        self.broker = broker
        self.url = url
        self.client = httpx.Client(base_url=url, timeout=30)
        self.owner = store.register_consumer(
            pool="local",
            host="here",
            pid=1,
            device="cpu",
            capacity="on_demand",
            queue_ids=[queue for version in store.models() for queue in version.queue_ids.values()],
            lease_ms=600_000,
        )

    def submit(self, *inputs: Any, model: str = "echo", **members: Any) -> list[str]:
        """Submit several jobs and return their ids."""
        answer = self.client.post(f"/v1/models/{model}/jobs", json={"inputs": inputs, **members})
        assert answer.status_code == 202, answer.text
        ids: list[str] = answer.json()["ids"]
        return ids

    def bulk(self, model: str = "echo", **members: Any) -> str:
        answer = self.client.post("/v1/bulks", json={"model": model, **members})
        assert answer.is_success, answer.text
        number: str = answer.json()["id"]
        return number

    def feed(self, bulk: str, inputs: Sequence[Any], *, key: str) -> httpx.Response:
        return self.client.post(f"/v1/bulks/{bulk}/jobs", json={"inputs": inputs}, headers={"Idempotency-Key": key})

    def claim(self, ids: Sequence[int]) -> list[ClaimedJob]:
        [view, *_] = self.store.get_jobs(ids, tenant_id=1, results=False)
        return self.store.claim([(view.queue_id, sorted(ids))], owner=self.owner)

    def finish(self, ids: Sequence[str | int], *, hint: bool = True, all_of_them: bool = True) -> None:
        """Claim jobs and end each with its own input as its result; an input of "fail" fails."""
        numbers = [number if isinstance(number, int) else parse_id(number) or 0 for number in ids]
        outcomes = [_outcome(job) for job in self.claim(numbers)]
        finished = self.store.finish(outcomes, owner=self.owner)
        assert len(finished) == len(numbers) or not all_of_them
        if hint:
            self.broker.hint(numbers)

    def metric(self, name: str) -> float:
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[-1])
        raise AssertionError(f"/metrics has no {name}")


def _outcome(job: ClaimedJob) -> Outcome:
    if job.input == b'"fail"':
        return Outcome(job=job, state=State.FAILED, error=ErrorInfo("model_error", "it failed"))
    return Outcome(job=job, state=State.SUCCEEDED, body=job.input, format=results.JSON, cost=1)


@contextmanager
def serving(store: JobStore, *, url: str, state_dir: Path) -> Iterator[Yard]:
    """Serve this store, of the database at `url`, on a free port until the block ends."""
    settings = Settings(
        state_dir=state_dir,
        database=DatabaseSettings(url=url),
        models=MODELS,
        server=SERVER,
        queues=QUEUES,
        webhooks=WEBHOOKS,
    )
    _publish_schema(store)
    fragile = FragileStore(store)
    broker = Broker("memory://")
    application = Api(settings, store=fragile, broker=broker, timing=Timing(webhooks=0.1)).application
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        application, lifespan="on", log_config=None, access_log=False, http=Connection, loop="uvloop"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yard = Yard(store=store, fragile=fragile, broker=broker, url=f"http://127.0.0.1:{listening.getsockname()[1]}")
    try:
        _await_start(server, thread)
        yield yard
    finally:
        yard.client.close()
        server.should_exit = True
        thread.join(timeout=30)
        listening.close()
        broker.close()
    assert not thread.is_alive()


def _await_start(server: uvicorn.Server, thread: threading.Thread) -> None:
    waiting = threading.Event()
    for _ in range(3000):
        if server.started or not thread.is_alive():
            break
        waiting.wait(0.01)
    assert server.started


def _publish_schema(store: JobStore) -> None:
    versions = store.sync_models(
        [ModelConfig(model=model.name, version=model.version, runtime=model.runtime) for model in MODELS]
    )
    strict = next(version for version in versions if version.model == "strict")
    store.report_version(strict.id, digest="d", input_schema=TEXT_SCHEMA, cost_unit="bytes", load_seconds=0.1)
