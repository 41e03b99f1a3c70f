"""Messages to receivers of our own, on loopback, with names that resolve as a test says."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from batchyard.destinations import networks
from batchyard_producer.posting import LOOK_UPS, Answer, Poster, PostFailed, retry_after_seconds

LOOPBACK = networks(["127.0.0.0/8", "::1/128"])
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Names:
    """A resolver that answers in turn what it was given, and counts how often it was asked."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


class Receiver:
    """Answers every connection with the same bytes and keeps what it was sent."""

    def __init__(self, answer: bytes = OK) -> None:
        self.answer = answer
        self.requests: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        self.requests.append(head + await reader.readexactly(length))
        writer.write(self.answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def listening(handle: Handle, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port of a server on loopback."""
    handling: set[asyncio.Task[None]] = set()

    async def handled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await handle(reader, writer)
        writer.transport.abort()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handling.add(asyncio.ensure_future(handled(reader, writer)))

    server = await asyncio.start_server(begin, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in handling:
            task.cancel()
        await asyncio.gather(*handling)
        await asyncio.sleep(0)


def poster(*, resolve: Names | None = None, tls: ssl.SSLContext | None = None, seconds: float = 5.0) -> Poster:
    return Poster(allowed=LOOPBACK, timeout_seconds=seconds, resolve=resolve, ssl_context=tls)


async def post(one: Poster, url: str) -> Answer:
    return await one.post(url, b'{"a":1}', {"content-type": "application/json", "webhook-id": "m"}, now_seconds=0.0)


async def test_a_message_arrives_as_it_was_given() -> None:
    receiver = Receiver()
    async with listening(receiver) as port:
        assert await post(poster(), f"http://127.0.0.1:{port}/hook?a=b") == Answer(200, None)
    (request,) = receiver.requests
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /hook?a=b HTTP/1.1"
    assert body == b'{"a":1}'
    assert {b"webhook-id: m", b"content-type: application/json", f"Host: 127.0.0.1:{port}".encode()} <= set(lines)


async def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    target = Receiver()
    async with listening(target) as aim:
        moved = f"HTTP/1.1 307 Moved\r\nlocation: http://127.0.0.1:{aim}/\r\ncontent-length: 0\r\n\r\n".encode()
        async with listening(Receiver(moved)) as port:
            assert (await post(poster(), f"http://127.0.0.1:{port}/")).status == 307
    assert target.requests == []


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "169.254.169.254", "::ffff:10.0.0.1", "0.0.0.0", "fe80::1", "nonsense"]
)
async def test_a_name_that_resolves_to_what_only_we_can_reach_is_refused(address: str) -> None:
    for answers in ([address], ["127.0.0.1", address]):
        with pytest.raises(PostFailed, match="no address"):
            await post(poster(resolve=Names(answers)), "https://evil.example.com/")


async def test_a_name_is_resolved_once_and_the_connection_goes_where_the_check_was(certificate: Path) -> None:
    """Whoever owns the name answers the second time with another address; nobody asks a second time."""
    server, client = _contexts(certificate)
    receiver = Receiver()
    names = Names(["127.0.0.1"], ["10.0.0.1"])
    async with listening(receiver, tls=server) as port:
        assert (await post(poster(resolve=names, tls=client), f"https://hooks.example.com:{port}/")).status == 200
    assert names.asked == ["hooks.example.com"]
    assert f"Host: hooks.example.com:{port}".encode() in receiver.requests[0]


async def test_the_certificate_must_be_of_the_name_though_the_address_is_pinned(certificate: Path) -> None:
    server, client = _contexts(certificate)
    async with listening(Receiver(), tls=server) as port:
        with pytest.raises(PostFailed, match="certificate verify failed"):
            await post(poster(resolve=Names(["127.0.0.1"]), tls=client), f"https://other.example.com:{port}/")
        with pytest.raises(PostFailed, match="certificate verify failed"):
            await post(poster(resolve=Names(["127.0.0.1"])), f"https://hooks.example.com:{port}/")


async def test_addresses_are_tried_in_turn(certificate: Path) -> None:
    server, client = _contexts(certificate)
    async with listening(Receiver(), tls=server) as port:
        names = Names(["127.0.0.2", "127.0.0.1"])
        assert (await post(poster(resolve=names, tls=client), f"https://hooks.example.com:{port}/")).status == 200


async def test_the_whole_takes_no_longer_than_it_may() -> None:
    async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x: y\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with listening(drips) as port:
        with pytest.raises(PostFailed, match=r"no answer within 0\.3 s"):
            await post(poster(seconds=0.3), f"http://127.0.0.1:{port}/")


async def test_an_answer_is_read_as_far_as_its_bound() -> None:
    async def floods(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n")
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()

    async with listening(floods) as port:
        assert (await post(poster(), f"http://127.0.0.1:{port}/")).status == 200


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort"])
async def test_what_is_no_answer_is_a_failure(answer: bytes) -> None:
    async with listening(Receiver(answer)) as port:
        with pytest.raises(PostFailed):
            await post(poster(), f"http://127.0.0.1:{port}/")


async def test_nobody_there_and_names_that_are_none_are_failures() -> None:
    async with listening(Receiver()) as port:
        pass
    for url in (f"http://127.0.0.1:{port}/", "http://example.com/", "https://10.0.0.1/", "https://no-such.invalid/"):
        with pytest.raises(PostFailed):
            await post(poster(), url)


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "localhost"])
async def test_our_own_machine_is_refused_however_it_is_written(host: str) -> None:
    strict = Poster(allowed=(), timeout_seconds=5)
    with pytest.raises(PostFailed, match="no address of the public internet"):
        await post(strict, f"https://{host}/")


async def test_names_that_nobody_answers_for_hold_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    released, look_up = threading.Event(), socket.getaddrinfo

    def stuck(host: str, *more: Any, **named: Any) -> Any:
        if host == "stuck.example.com":
            released.wait(30)
        return look_up("127.0.0.1", *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", stuck)
    strict = Poster(allowed=(), timeout_seconds=1.0)
    try:
        posts = [post(strict, "https://stuck.example.com/") for _ in range(LOOK_UPS // 2)]
        late = await asyncio.gather(*posts, return_exceptions=True)
        assert {str(failure) for failure in late} == {"no answer within 1 s"}
        async with asyncio.timeout(10):
            assert await asyncio.to_thread(lambda: "the store") == "the store"
            with pytest.raises(PostFailed, match="resolves to"):
                await post(strict, "https://other.example.com/")
    finally:
        released.set()


def test_retry_after_is_seconds_or_a_date() -> None:
    def asked(value: bytes) -> float | None:
        return retry_after_seconds([(b"Date", b"x"), (b"Retry-After", value)], now_seconds=784_111_777.0 - 60)

    assert asked(b"120") == 120.0
    assert asked(b"Sun, 06 Nov 1994 08:49:37 GMT") == pytest.approx(60.0)
    assert asked(b"Sun, 06 Nov 1993 08:49:37 GMT") == 0.0
    for other in (b"soon", b"-1", b"", b"1.5"):
        assert asked(other) is None
    assert retry_after_seconds([], now_seconds=0.0) is None


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a key and a certificate of hooks.example.com that vouches for itself."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    named = ["-addext", "subjectAltName=DNS:hooks.example.com", "-keyout", "key.pem", "-out", "certificate.pem"]
    subprocess.run([*command.split(), *named], cwd=folder, check=True, capture_output=True)
    return folder


def _contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of the server, and of a client that trusts it alone."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return server, ssl.create_default_context(cafile=str(folder / "certificate.pem"))
