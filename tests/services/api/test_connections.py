"""What a connection may send and for how long, before a request is there to be answered."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import pytest

from batchyard.jobs import Outcome, State
from batchyard.testing import memory_store
from batchyard_producer import connections, intake
from batchyard_producer.connections import MAX_HEAD_BYTES, answer_at_once
from tests.services.api.yard import Yard, serving
from tests.services.store.yard import eventually

PATIENCE_SECONDS = 0.5
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    store = memory_store()
    folder = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections, "HEAD_SECONDS", PATIENCE_SECONDS)
        with serving(store, url="sqlite", state_dir=folder) as served:
            yield served
    store.close()


@contextmanager
def connected(yard: Yard) -> Iterator[socket.socket]:
    host, _, port = yard.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        yield connection


def until_closed(connection: socket.socket) -> bytes:
    """All that comes; fails where the server keeps the connection."""
    told = b""
    while piece := connection.recv(65536):
        told += piece
    return told


def send_until_cut_off(connection: socket.socket, piece: bytes, *, pause_seconds: float = 0.0) -> None:
    """Send it again and again; fails where the server takes it for 20 s, or 20 MB of it."""
    end = time.monotonic() + 20
    for _ in range(20_000_000 // len(piece)):
        try:
            connection.sendall(piece)
        except OSError:  # a reset, or a broken pipe
            return
        if time.monotonic() > end:
            break
        time.sleep(pause_seconds)
    raise AssertionError("it was never cut off")


def head(size: int) -> bytes:
    """A request whose head has so many bytes."""
    start, end = REQUEST[:-2] + b"X-Long: ", b"\r\n\r\n"
    return start + b"x" * (size - len(start) - len(end)) + end


def test_who_says_nothing_is_cut_off(yard: Yard) -> None:
    with connected(yard) as silent:
        assert until_closed(silent) == b""


@pytest.mark.parametrize("before", [b"", REQUEST], ids=["first", "later"])
def test_a_head_has_so_much_time_in_all_however_it_drips(yard: Yard, before: bytes) -> None:
    with connected(yard) as slow:
        slow.sendall(before)
        if before:
            assert slow.recv(65536).startswith(b"HTTP/1.1 200")
        slow.sendall(b"GET /healthz HTTP/1.1\r\n")
        send_until_cut_off(slow, b"X-Header: x\r\n", pause_seconds=PATIENCE_SECONDS / 20)


def test_who_is_answered_may_be_silent_for_longer(yard: Yard) -> None:
    with connected(yard) as client:
        for _ in range(2):
            client.sendall(REQUEST)
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
            time.sleep(2 * PATIENCE_SECONDS)


def test_a_body_and_an_answer_may_take_longer(yard: Yard) -> None:
    body = b'{"input": 1}'
    with connected(yard) as client:
        client.sendall(b"POST /v1/models/echo/jobs HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=1\r\n")
        client.sendall(b"Content-Length: %d\r\n\r\n" % len(body))
        for position in range(len(body)):
            client.sendall(body[position : position + 1])
            time.sleep(PATIENCE_SECONDS / 6)
        assert client.recv(65536).startswith(b"HTTP/1.1 202")


def test_a_head_within_the_limit_is_taken_and_one_beyond_it_refused(yard: Yard) -> None:
    # The method and the version go uncounted.
    with connected(yard) as client:
        for _ in range(2):
            client.sendall(head(MAX_HEAD_BYTES))
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
    with connected(yard) as client:
        client.sendall(head(MAX_HEAD_BYTES + 100))
        assert until_closed(client).startswith(b"HTTP/1.1 431 ")


def test_a_head_without_an_end_is_cut_off_at_the_limit(yard: Yard) -> None:
    with connected(yard) as client:
        client.sendall(REQUEST[:-2] + b"X-Long: ")
        send_until_cut_off(client, b"x" * 4096)


def test_trailers_without_an_end_are_cut_off(yard: Yard) -> None:
    with connected(yard) as client:
        client.sendall(b"POST /v1/models/echo/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.sendall(b"1\r\n{\r\n0\r\n")
        send_until_cut_off(client, b"X-Trailer: x\r\n" * 256)


def test_large_bodies_are_no_heads(yard: Yard) -> None:
    body = b'{"inputs": ["%b"]}' % b'","'.join([b"x" * 900] * 90)
    request = b"POST /v1/models/echo/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
    with connected(yard) as client:
        for _ in range(3):
            client.sendall(request % (len(body), body))
            assert client.recv(65536).startswith(b"HTTP/1.1 202")


def test_what_follows_a_refusal_is_read_for_a_moment_only(yard: Yard) -> None:
    with connected(yard) as client:
        client.sendall(b"POST /v1/models/echo/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000000\r\n\r\n{")
        assert client.recv(65536).startswith(b"HTTP/1.1 413")
        send_until_cut_off(client, b"x", pause_seconds=PATIENCE_SECONDS / 20)


def test_an_answer_in_one_piece_reads_as_one_by_uvicorn(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """An echo model's job, a replay of it, and a key that was used with another body."""
    answers: list[list[tuple[int, dict[str, str], bytes]]] = []
    calls = []

    def counted(*given: Any) -> bool:
        calls.append(answer_at_once(*given))
        return calls[-1]

    for at_once in (counted, lambda *_: False):
        monkeypatch.setattr(intake, "answer_at_once", at_once)
        with httpx.Client(base_url=yard.url) as client:
            one = client.post("/v1/models/echo/jobs", json={"input": {"n": 1}}, headers={"idempotency-key": "same"})
            other = client.post("/v1/models/echo/jobs", json={"input": {"n": 2}}, headers={"idempotency-key": "same"})
            shown = client.get(one.headers["location"])
            answers.append([(r.status_code, dict(r.headers) | {"date": ""}, r.content) for r in (one, other, shown)])
    assert answers[0][1:] == answers[1][1:]
    first, replay = answers[0][0], answers[1][0]
    assert (first[0], first[1].keys()) == (replay[0], replay[1].keys())
    assert calls.count(True) >= 2


def test_what_is_no_request_is_told_so(yard: Yard) -> None:
    with connected(yard) as client:
        client.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert until_closed(client).startswith(b"HTTP/1.1 400 ")


# --- readers who do not read ---


@contextmanager
def not_reading(yard: Yard, path: str, *, window_bytes: int = 4096) -> Iterator[socket.socket]:
    """A request whose answer nobody reads; the system holds about as much of it as its window."""
    host, _, port = yard.url.removeprefix("http://").partition(":")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window_bytes)
        connection.settimeout(10)
        connection.connect((host, int(port)))
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        yield connection


def large_result(yard: Yard) -> str:
    """The path of a job with a result far beyond what the system holds for a reader."""
    [job] = yard.submit(0)
    [claimed] = yard.claim([int(job, 16)])
    body = b'"' + b"x" * LARGE + b'"'
    yard.store.finish([Outcome(claimed, State.SUCCEEDED, body=body, cost=1)], owner=yard.owner)
    return f"/v1/jobs/{job}"


LARGE = 12_000_000


def test_answers_that_nobody_takes_are_bounded_all_together(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    path = large_result(yard)
    monkeypatch.setattr(connections, "UNREAD_BYTES", 2 * LARGE)
    with ThreadPoolExecutor(1) as threads, ExitStack() as stack:
        firsts = [stack.enter_context(not_reading(yard, path)).recv(12) for _ in range(6)]
        assert firsts[0] == b"HTTP/1.1 200"
        assert firsts[3:] == [b"HTTP/1.1 503"] * 3
        lying = sum(connection.unread_bytes for connection in tuple(connections.unread.connections))
        assert LARGE / 2 < lying <= 2 * LARGE
        refused = yard.client.get(path)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        # What is small has room all the same.
        assert yard.client.get("/v1/jobs").status_code == 200
        # A stream has begun to be answered: it waits.
        monkeypatch.setattr(connections, "UNREAD_BYTES", lying)
        stream = threads.submit(yard.client.get, f"/v1/bulks/{yard.bulk()}/results")
        assert wait([stream], timeout=0.5).not_done
    assert stream.result(timeout=30).text.endswith('"finished":false}\n')
    eventually(lambda: not connections.unread.connections)
    assert len(yard.client.get(path).json()["result"]) == LARGE


def test_a_reader_who_takes_nothing_is_cut_off_and_a_slow_one_is_not(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = large_result(yard)
    monkeypatch.setattr(connections, "LOOK_SECONDS", 1.0)
    with not_reading(yard, path) as stuck, not_reading(yard, path, window_bytes=500_000) as slow:
        taken = bytearray()
        while not taken.endswith(b"}"):
            piece = slow.recv(200_000)
            assert piece, "it was cut off"
            taken += piece
            time.sleep(0.02)
        assert len(taken) > LARGE
        eventually(lambda: not connections.unread.connections)
        told = b""
        with suppress(ConnectionResetError):
            told = until_closed(stuck)
        assert len(told) < LARGE


# --- what two readers of a request might read differently ---


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 0x5\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"X-One: a\r\n b: folded\r\n",
        b"X-One: a\nX-Two: b\r\n",
        b"X-One: a\x00b\r\n",
        b"X-One: a\rb\r\n",
    ],
)
def test_a_head_that_can_be_read_in_two_ways_is_no_request(yard: Yard, lines: bytes) -> None:
    """Or a proxy in front could be made to see another request than we do."""
    with connected(yard) as client:
        client.sendall(b"POST /v1/models/echo/jobs HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\n0\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        told = until_closed(client)
    assert told.startswith(b"HTTP/1.1 400 ")
    assert told.endswith(b"Invalid HTTP request received.")  # the parser's word, not a route's
