"""What the proxy does to connections."""

import socket
import socketserver
import threading
from collections.abc import Iterator

import pytest

from tests.faults.proxy import Proxy, proxy


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(1000):
            self.request.sendall(data)


@pytest.fixture
def between() -> Iterator[Proxy]:
    """In front of a server that answers with what it hears."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        with proxy(server.server_address[1]) as made:
            yield made
        server.shutdown()
        thread.join()


def connected(to: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", to.port), timeout=5)


def asked(connection: socket.socket) -> bytes:
    connection.sendall(b"hello")
    return heard(connection)


def heard(connection: socket.socket) -> bytes:
    """What comes next; b"" where that is the end of the connection."""
    try:
        return connection.recv(1000)
    except ConnectionError:
        return b""


def test_bytes_pass_both_ways(between: Proxy) -> None:
    with connected(between) as connection:
        assert asked(connection) == b"hello"


def test_a_cut_ends_connections_and_lets_new_ones_through(between: Proxy) -> None:
    with connected(between) as old:
        assert asked(old) == b"hello"
        between.cut()
        assert heard(old) == b""
        with connected(between) as another:
            assert asked(another) == b"hello"


def test_nothing_passes_while_it_is_held_up(between: Proxy) -> None:
    with connected(between) as connection:
        assert asked(connection) == b"hello"
        between.hold_up()
        connection.sendall(b"late")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1000)
        between.let_through()
        connection.settimeout(5)
        assert connection.recv(1000) == b"late"


def test_a_lost_answer_ends_the_connection_once_the_server_has_done_its_work(between: Proxy) -> None:
    with connected(between) as connection:
        between.lose_answers(1)
        assert asked(connection) == b""
        assert between.lost == 1
    with connected(between) as connection:
        assert asked(connection) == b"hello"
