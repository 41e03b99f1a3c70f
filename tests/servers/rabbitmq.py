"""A private RabbitMQ with its own epmd, so that nothing of it outlives the block."""

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.processes import Server, ServerUnavailable, free_port, running, server_folder

# Debian's own scripts; those on the path change to another account first.
DEBIAN_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
# The distribution port is set below; RabbitMQ would otherwise add 20,000 to this one.
HIGHEST_PORT = 45535


@contextmanager
def rabbitmq_server() -> Iterator[Server]:
    """The installed RabbitMQ on a free loopback port, with the account guest:guest and the virtual host `/`."""
    found = str(DEBIAN_SERVER) if DEBIAN_SERVER.exists() else shutil.which("rabbitmq-server")
    epmd = shutil.which("epmd")
    if found is None or epmd is None:
        raise ServerUnavailable("no RabbitMQ: install rabbitmq-server")
    port, epmd_port = free_port(below=HIGHEST_PORT), free_port()
    with server_folder("rabbitmq") as directory:
        environment = _environment(directory, port=port, epmd_port=epmd_port)
        # Started here, because a node starts one for itself that stays when the node is gone.
        with (
            running(
                [epmd, "-port", str(epmd_port), "-address", "127.0.0.1"],
                directory=directory,
                ready=lambda: _listens(epmd_port),
            ),
            running(
                [found],
                directory=directory,
                environment=environment,
                ready=lambda: _speaks_amqp(port),
            ) as process,
        ):
            yield Server(url=f"amqp://guest:guest@127.0.0.1:{port}//", directory=directory, pid=process.pid)


def _environment(directory: Path, *, port: int, epmd_port: int) -> dict[str, str]:
    home = directory / "home"
    home.mkdir()
    plugins = directory / "plugins"
    plugins.write_text("[].\n")
    return {
        "HOME": str(home),
        "RABBITMQ_NODENAME": f"by{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(epmd_port),
        "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
        "RABBITMQ_LOG_BASE": str(directory / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
        "RABBITMQ_PID_FILE": str(directory / "pid"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
    }


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _speaks_amqp(port: int) -> bool:
    """Whether the node greets a client: its listeners open last, after the accounts exist."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"
    except OSError:
        return False
