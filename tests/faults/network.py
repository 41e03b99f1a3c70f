"""A network of a server's own behind a router that drops packets: nobody is refused, and nobody is told.

Three namespaces in a row: this one, the router's, the server's. A blackhole route of the router drops what goes to the
server, or what comes from it. That takes `ip` and the right to make namespaces; no packet filter is needed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from tests.faults.proxy import proxy
from tests.servers import Server, postgres_server, rabbitmq_server, valkey_server

CLONE_NEWNET = 0x40000000
NAMESPACES = Path("/run/netns")
WAYS = ("requests", "answers")


class NoNetwork(Exception):
    """Namespaces cannot be made here; the message says why."""


class Network:
    """`address` is the server's, `ours` this side's, as the other one sees them."""

    def __init__(self, name: str) -> None:
        self._router, self._server = f"{name}r", f"{name}s"
        # Eight addresses for this process of those that are set aside for trials of networks.
        block = os.getpid() % (1 << 14) * 8
        self._host = f"198.{18 + (block >> 16)}.{block >> 8 & 255}."
        self._first = block & 255
        self.ours, self.address = self._at(1), self._at(6)

    def _at(self, place: int) -> str:
        return f"{self._host}{self._first + place}"

    def make(self) -> None:
        router, server = self._router, self._server
        for namespace in (router, server):
            ip("netns", "add", namespace)
        ip("link", "add", f"{router}0", "type", "veth", "peer", "name", "in", "netns", router)
        ip("-n", router, "link", "add", "out", "type", "veth", "peer", "name", "in", "netns", server)
        ip("addr", "add", f"{self.ours}/30", "dev", f"{router}0")
        ip("-n", router, "addr", "add", f"{self._at(2)}/30", "dev", "in")
        ip("-n", router, "addr", "add", f"{self._at(5)}/30", "dev", "out")
        ip("-n", server, "addr", "add", f"{self.address}/30", "dev", "in")
        ip("link", "set", f"{router}0", "up")
        for namespace, device in ((router, "in"), (router, "out"), (server, "in"), (server, "lo")):
            ip("-n", namespace, "link", "set", device, "up")
        ip("netns", "exec", router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        ip("route", "add", f"{self._at(4)}/30", "via", self._at(2))
        ip("-n", server, "route", "add", "default", "via", self._at(5))

    def remove(self) -> None:
        """What connects to a namespace goes with it."""
        for namespace in (self._router, self._server):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """What this thread opens or starts within the block stands in the server's namespace, and stays there."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(NAMESPACES / self._server, os.O_RDONLY)
        try:
            _enter(there)
            yield
        finally:
            _enter(home)
            os.close(there)
            os.close(home)

    @contextmanager
    def dropping(self, way: str) -> Iterator[None]:
        """Let no packet of the `requests`, or of the `answers`, arrive."""
        route = ("blackhole", self.address if way == "requests" else self.ours)
        ip("-n", self._router, "route", "add", *route)
        try:
            yield
        finally:
            ip("-n", self._router, "route", "del", *route)

    @contextmanager
    def serving(self, kind: str) -> Iterator[str]:
        """A new server of `_SERVERS` on the other side, by the URL that reaches it from here."""
        start, socket_of, url = _SERVERS[kind]
        with ExitStack() as stack:
            with self.inside():
                server = stack.enter_context(start())
                # Servers listen for their own side alone: what it passes on to them has crossed the network.
                between = stack.enter_context(proxy(socket_of(server), host=self.address))
            yield url.format(host=self.address, port=between.port)


_SERVERS: dict[str, tuple[Callable[[], AbstractContextManager[Server]], Callable[[Server], Path | int], str]] = {
    "redis": (valkey_server, lambda server: server.directory / "s", "redis://{host}:{port}"),
    "rabbitmq": (
        rabbitmq_server,
        lambda server: int(server.url.rpartition(":")[2].strip("/")),
        "amqp://guest:guest@{host}:{port}//",
    ),
    "postgres": (
        postgres_server,
        lambda server: server.directory / ".s.PGSQL.5432",
        "postgresql+psycopg://postgres@{host}:{port}/postgres",
    ),
}


@contextmanager
def network() -> Iterator[Network]:
    """NoNetwork where none can be made."""
    if shutil.which("ip") is None:
        raise NoNetwork("there is no `ip`: install iproute2")
    made = Network(f"by{os.getpid()}")
    try:
        try:
            made.make()
        except subprocess.CalledProcessError as refused:
            raise NoNetwork(f"no network namespace can be made here: {refused.stderr.strip()}") from refused
        yield made
    finally:
        made.remove()


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _enter(namespace: int) -> None:
    """Of this thread alone; Python has this from 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
