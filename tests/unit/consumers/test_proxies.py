"""Proxies against stand-in servers that speak the documented protocols."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from batchyard.jobs import State
from batchyard_consumers.runtimes.proxies import KServe, OpenAI
from tests.unit.consumers.line import Line, until, value_of


class Server(ThreadingHTTPServer):
    """Answers each request by its body's `do`; counts how many it works on at the most."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.working = self.most = 0
        self.gate = threading.Event()
        self.gate.set()
        self.busy_once: set[str] = set()
        self.seen: list[tuple[str, dict[str, Any], dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    answers: ClassVar[dict[str, tuple[int, Any]]] = {
        "refuse": (400, {"error": {"message": "too long", "type": "invalid_request_error"}}),
        "forbid": (401, {"error": {"message": "no key"}}),
        "garbage": (200, "<html>"),
        "binary": (200, "\udcff"),
        "deep": (200, "[" * 100_000),
        "late": (408, {"error": "timeout"}),
    }

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.seen.append((self.path, body, dict(self.headers)))
            server.working += 1
            server.most = max(server.most, server.working)
        server.gate.wait(10)
        status, answer = self.answers.get(body.get("do", ""), (200, _good(body)))
        if body.get("do") == "busy" and body["id"] not in server.busy_once:
            server.busy_once.add(body["id"])
            status, answer = 503, {"detail": "overloaded"}
        with server.lock:
            server.working -= 1
        raw = answer.encode(errors="surrogateescape") if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        if body.get("do") == "break off":
            self.send_header("Content-Length", str(len(raw) + 10))
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        pass


def _good(body: dict[str, Any]) -> dict[str, Any]:
    return {"echo": body, "usage": {"total_tokens": 42}}


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.gate.set()
    server.shutdown()
    thread.join()
    server.server_close()


def proxy(kind: type[Any], server: Server, *, below: str = "", **options: Any) -> Line:
    model = kind()
    model.source = server.url + below
    return Line({"m": model}, options=options)


def test_requests_reach_the_endpoint_of_their_kind(server: Server) -> None:
    inputs: list[dict[str, Any]] = [{"messages": []}, {"prompt": "x"}, {"input": "x"}]
    with proxy(OpenAI, server, below="/v1", model="llama", body={"seed": 1}, headers={"X-Who": "me"}) as line:
        views = line.finish(line.submit("m", inputs))
    assert {path for path, _, _ in server.seen} == {"/v1/chat/completions", "/v1/completions", "/v1/embeddings"}
    assert all(body["model"] == "llama" and body["seed"] == 1 for _, body, _ in server.seen)
    assert all(headers["X-Who"] == "me" for _, _, headers in server.seen)
    assert value_of(views[1]) == {"echo": {"model": "llama", "seed": 1, "prompt": "x"}, "usage": {"total_tokens": 42}}
    assert {view.cost for view in views} == {42}


def test_the_server_is_kept_full_and_no_fuller(server: Server) -> None:
    server.gate.clear()
    with proxy(OpenAI, server, concurrency=5) as line:
        ids = line.submit("m", [{"prompt": str(n)} for n in range(40)])
        until(lambda: server.working == 5)
        server.gate.set()
        views = line.finish(ids)
    assert server.most == 5
    assert [value_of(view)["echo"]["prompt"] for view in views] == [str(n) for n in range(40)]


def test_errors_go_to_their_own_job(server: Server) -> None:
    deeds = ["fine", "refuse", "forbid", "garbage", "busy", "fine"]
    with proxy(OpenAI, server) as line:
        views = line.finish(line.submit("m", [{"prompt": "x", "do": deed, "id": deed} for deed in deeds]))
    assert [view.state is State.SUCCEEDED for view in views] == [True, False, False, False, True, True]
    assert views[4].failures == 1
    words = {deed: view.error.message for deed, view in zip(deeds, views, strict=True) if view.error is not None}
    codes = [view.error.code if view.error is not None else None for view in views]
    assert codes[1:4] == ["invalid_input", "model_error", "model_error"]
    assert "too long" in words["refuse"]
    assert "401: no key" in words["forbid"]
    assert "not JSON" in words["garbage"]


@pytest.mark.parametrize(
    ("deed", "code", "failures", "words"),
    [
        ("binary", "model_error", 1, "not JSON"),
        ("deep", "model_error", 1, "not JSON"),
        ("late", "model_busy", 3, "408: timeout"),
        ("break off", "model_busy", 3, "did not answer"),
    ],
)
def test_answers_that_are_none_cost_their_own_job(
    server: Server, deed: str, code: str, failures: int, words: str
) -> None:
    with proxy(OpenAI, server) as line:
        bad, good = line.finish(line.submit("m", [{"prompt": "x", "do": deed}, {"prompt": "y"}]))
    assert (value_of(bad), bad.failures, good.state) == (code, failures, State.SUCCEEDED)
    assert bad.error is not None
    assert words in bad.error.message


def test_a_server_that_does_not_answer_in_time_is_asked_again(server: Server) -> None:
    server.gate.clear()
    with proxy(OpenAI, server, timeout_seconds=0.05) as line:
        [view] = line.finish(line.submit("m", [{"prompt": "x"}], max_failures=2))
    assert (value_of(view), view.failures) == ("model_busy", 2)


def test_bytes_travel_as_base64(server: Server) -> None:
    with proxy(KServe, server, model="dense") as line:
        model = line.served["m"].model
        assert model is not None
        [item] = model.preprocess([{"inputs": [{"name": "x", "datatype": "BYTES", "data": [b"\0\xff"]}]}], {})
        model.join(1, item)  # type: ignore[attr-defined]
        until(model.step)  # type: ignore[attr-defined]
    assert server.seen[0][1]["inputs"][0]["data"] == ["AP8="]


def test_a_request_that_cannot_be_written_fails_and_does_not_hang(server: Server) -> None:
    with proxy(OpenAI, server) as line:
        model = line.served["m"].model
        assert model is not None
        [item] = model.preprocess([{"prompt": object()}], {})
        model.join(1, item)  # type: ignore[attr-defined]
        until(lambda: (ended := model.step()) and isinstance(ended[0][1], TypeError))  # type: ignore[attr-defined]


def test_a_server_that_is_away_is_asked_again() -> None:
    gone = Server()
    gone.server_close()
    with proxy(OpenAI, gone) as line:
        views = line.finish(line.submit("m", [{"prompt": "x"}]))
    assert views[0].state is State.FAILED
    assert views[0].failures == 3
    assert views[0].error is not None
    assert "did not answer" in views[0].error.message


def test_a_cancelled_request_is_given_up(server: Server) -> None:
    server.gate.clear()
    with proxy(OpenAI, server) as line:
        ids = line.submit("m", [{"prompt": "x"}])
        until(lambda: server.working == 1)
        line.pipeline.cancel(frozenset(ids))
        assert [view.state for view in line.finish(ids)] == [State.CANCELLED]


def test_streams_are_refused(server: Server) -> None:
    with proxy(OpenAI, server) as line:
        views = line.finish(line.submit("m", [{"prompt": "x", "stream": True}, 7]))
    assert [value_of(view) for view in views] == ["invalid_input", "invalid_input"]
    assert not server.seen


def test_kserve_is_asked_for_its_model(server: Server) -> None:
    asked = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
    with proxy(KServe, server, model="dense") as line:
        views = line.finish(line.submit("m", [asked]))
    with proxy(KServe, server, model="dense", model_version="3") as line:
        line.finish(line.submit("m", [asked]))
    assert [path for path, _, _ in server.seen] == ["/v2/models/dense/infer", "/v2/models/dense/versions/3/infer"]
    assert value_of(views[0])["echo"] == asked


def test_the_key_comes_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sesame")
    with proxy(OpenAI, server, api_key_env="SOME_KEY") as line:
        line.finish(line.submit("m", [{"prompt": "x"}]))
    assert server.seen[0][2]["Authorization"] == "Bearer sesame"


@pytest.mark.parametrize(
    ("kind", "source", "options", "words"),
    [
        (OpenAI, "./weights", {}, "the URL of the server"),
        (OpenAI, "http://127.0.0.1:1", {"api_key_env": "NO_SUCH_KEY"}, "has no NO_SUCH_KEY"),
        (KServe, "http://127.0.0.1:1", {}, "the option model is missing"),
    ],
)
def test_what_is_missing_is_said_at_the_start(
    kind: type[Any], source: str, options: dict[str, Any], words: str
) -> None:
    model = kind()
    model.source, model.options = source, options
    with pytest.raises(ValueError, match=words):
        model.load("cpu")
