"""What a connection may send and for how long, before a request is there to be answered."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from batchyard.testing import memory_store
from batchyard_producer import connections, intake
from batchyard_producer.connections import MAX_HEAD_BYTES, answer_at_once
from tests.services.api.yard import Yard, serving

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
