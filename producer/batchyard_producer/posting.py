"""One message to one receiver, without reaching what only we can reach.

The name in the URL is resolved once, every address that it has must be allowed, and the connection goes to one of just
these: whoever owns the name cannot answer a check with one address and the connection with another. TLS still verifies
the name. No redirect is followed, no proxy of the environment is asked, and the whole takes no longer than it may.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from functools import partial
from typing import NamedTuple

import httpcore
import httpx

from batchyard.destinations import Network, address_fault, check_url, literal_address
from batchyard.errors import InvalidRequest

LOOK_UPS = 64
"""Names looked up at the same time: more than twice the attempts that a process makes by default."""
MAX_ANSWER_BYTES = 16 * 1024
"""Of an answer's body, which nobody looks at; what comes beyond is not read."""

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a name, as text, the preferred first."""


class PostFailed(Exception):
    """No answer came; the message completes "the attempt failed: …"."""


class Answer(NamedTuple):
    status: int
    retry_after_seconds: float | None
    """What the receiver asked for, from now."""


class Poster:
    """Sends messages. Owned by one event loop; any number at the same time."""

    def __init__(
        self,
        *,
        allowed: Sequence[Network],
        timeout_seconds: float,
        resolve: Resolve | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._allowed = allowed
        self._timeout_seconds = timeout_seconds
        self._network = PinnedNetwork(allowed=allowed, resolve=resolve or Resolver())
        # As for every client of this Python: SSL_CERT_FILE and SSL_CERT_DIR add authorities.
        self._ssl_context = ssl_context or httpx.create_ssl_context()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], *, now_seconds: float) -> Answer:
        """The receiver's answer, whatever it says; PostFailed where there is none."""
        try:
            check_url(url, allowed=self._allowed)
            async with asyncio.timeout(self._timeout_seconds):
                return await self._post(url, body, headers, now_seconds=now_seconds)
        except InvalidRequest as refused:
            raise PostFailed(refused.message) from refused
        except TimeoutError as late:
            raise PostFailed(f"no answer within {self._timeout_seconds:g} s") from late
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError, ssl.SSLError, UnicodeError) as fault:
            raise PostFailed(str(fault) or type(fault).__name__) from fault

    async def _post(self, url: str, body: bytes, headers: Mapping[str, str], *, now_seconds: float) -> Answer:
        async with (
            httpcore.AsyncConnectionPool(ssl_context=self._ssl_context, network_backend=self._network) as connections,
            connections.stream("POST", url, headers=list(headers.items()), content=body) as response,
        ):
            size = 0
            async for chunk in response.aiter_stream():
                size += len(chunk)
                if size > MAX_ANSWER_BYTES:
                    break
            return Answer(response.status, retry_after_seconds(response.headers, now_seconds=now_seconds))


class PinnedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked, and to no others."""

    def __init__(self, *, allowed: Sequence[Network], resolve: Resolve) -> None:
        self._allowed = allowed
        self._resolve = resolve
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  httpcore's; ours is around the whole
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Try the name's addresses in turn; PostFailed where any of them is not allowed."""
        addresses = await self._resolve(host, port)
        for address in addresses:
            parsed = literal_address(address)
            fault = "is no address" if parsed is None else address_fault(parsed, allowed=self._allowed)
            if fault is not None:
                raise PostFailed(f"{host} resolves to {address}, which {fault}")
        for address in addresses[:-1]:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore.ConnectError:
                continue
        return await self._inner.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)


class Resolver:
    """As the system resolves names, on threads of its own: a look-up goes on after whoever asked has given up, and
    whoever owns a name decides how long. So names that nobody answers for hold up no other work of the process."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(LOOK_UPS, thread_name_prefix="batchyard-names")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """PostFailed where there is no such name."""
        looking = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, looking)
        except socket.gaierror as unknown:
            raise PostFailed(f"{host} cannot be resolved: {unknown.strerror}") from unknown
        return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def retry_after_seconds(headers: Iterable[tuple[bytes, bytes]], *, now_seconds: float) -> float | None:
    """What a Retry-After header asks for, as seconds or as a date; None without one that can be read."""
    for name, value in headers:
        if name.lower() != b"retry-after":
            continue
        text = value.decode("latin-1").strip()
        if text.isascii() and text.isdigit():
            return float(text[:12])
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - now_seconds)
        except (ValueError, OverflowError):
            return None
    return None
