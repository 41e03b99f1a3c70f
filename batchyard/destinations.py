"""Where webhooks may go: which URLs are taken, and which addresses are connected to. Pure.

A URL is written by a caller, who must not reach through us what only we can reach: the machine itself, its network, the
cloud's metadata. So it is `https`, and every address that its name resolves to must be one of the public internet,
unless it lies in a network that the configuration allows. Plain `http` is for loopback alone, and only where loopback
is allowed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

from batchyard.errors import InvalidRequest

MAX_URL_LENGTH = 2048

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All of IPv6 that is given out on the public internet; of the rest nobody can say where it leads."""


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Networks as the configuration names them; ValueError."""
    return tuple(ipaddress.ip_network(text) for text in texts)


def check_url(url: str, *, allowed: Sequence[Network], pointer: str = "/url") -> str:
    """The URL where webhooks may be told to go there; InvalidRequest. A name is resolved later, at each delivery."""
    parts = _split(url, pointer=pointer)
    host = parts.hostname or ""
    if parts.scheme == "http" and not _is_allowed_loopback(host, allowed):
        raise _refused(
            url,
            "a webhook goes to https; plain http is for loopback alone, where webhooks.allowed_networks has it",
            pointer=pointer,
        )
    literal = literal_address(host)
    if literal is not None and (fault := address_fault(literal, allowed=allowed)) is not None:
        raise _refused(url, f"{literal} {fault}", pointer=pointer)
    return url


def _split(url: str, *, pointer: str) -> SplitResult:
    """A URL in its parts, after what speaks against it as such."""
    if len(url) > MAX_URL_LENGTH:
        raise InvalidRequest(f"a webhook's URL has at most {MAX_URL_LENGTH} characters", pointer=pointer)
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise _refused(
            url, "write other characters than ASCII's as percent escapes, and names in Punycode", pointer=pointer
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _refused(url, str(error), pointer=pointer) from error
    if parts.scheme not in {"https", "http"} or not parts.hostname or port == 0:
        raise _refused(url, "it must be https://HOST/PATH", pointer=pointer)
    if "@" in parts.netloc:
        raise _refused(url, "it must not hold a user or a password: verify the signature instead", pointer=pointer)
    if parts.fragment:
        raise _refused(url, "it must not have a fragment", pointer=pointer)
    return parts


def _is_allowed_loopback(host: str, allowed: Sequence[Network]) -> bool:
    address = literal_address("127.0.0.1" if host == "localhost" else host)
    return address is not None and address.is_loopback and any(address in network for network in allowed)


def literal_address(host: str) -> Address | None:
    """The address that a host is, where it is no name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def address_fault(address: Address, *, allowed: Sequence[Network]) -> str | None:
    """Why nothing is sent to an address, to follow it in a sentence; None where it may be connected to."""
    inner = _inner(address)
    if any(each in network for network in allowed for each in (address, inner)):
        return None
    if inner.is_global and (inner in _UNICAST if inner.version == 6 else not inner.is_multicast):
        return None
    return (
        "is no address of the public internet; webhooks.allowed_networks names networks that are allowed all the same"
    )


def _inner(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, by any of the ways to write one; else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    carries = any(address in network for network in _NAT64) or (address in _COMPATIBLE and int(address) > 0xFFFF)
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if carries else address


def _refused(url: str, why: str, *, pointer: str) -> InvalidRequest:
    return InvalidRequest(f'"{url[:200]}" is no URL for a webhook: {why}', pointer=pointer)
