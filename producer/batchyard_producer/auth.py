"""Who is calling, and what they may do.

With keys: `Authorization: Bearer by_…`. Without, on loopback alone and unless keys are required: the default tenant
with every scope, for callers that name this machine as the host and are no web page of elsewhere (DNS rebinding and
cross-site requests would otherwise reach a service that trusts its neighbours).
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from collections.abc import Callable, Iterable, Sequence

import msgspec

from batchyard.errors import ConfigurationError, Forbidden, Unauthorized
from batchyard.keys import SCOPES, digest_of, is_same, prefix_of
from batchyard.limits import Limiter
from batchyard.settings import ServerSettings
from batchyard.store.base import ApiKey, JobStore
from batchyard.submission import Caller

DEFAULT_TENANT_ID = 1
CACHE_SECONDS = 5.0
"""How long a key's answer is kept, and so how long a revoked key may still be taken."""
CACHE_ENTRIES = 4096

_HOST = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^:/@\[\]]+)(:\d{1,5})?\Z")

Headers = Iterable[tuple[bytes, bytes]]
"""As ASGI gives them: lower-case names."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """A caller whose key, or place, was accepted."""

    tenant_id: int
    tenant: str
    scopes: frozenset[str]
    caller: Caller
    key_prefix: str | None = None

    def allows(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes

    def require(self, scope: str) -> None:
        """Forbidden where the scope is not held."""
        if not self.allows(scope):
            held = ", ".join(sorted(self.scopes)) or "none"
            raise Forbidden(
                f'this call needs a key with the scope "{scope}"; yours has: {held}', allowed=[scope, "admin"]
            )


LOCAL = Identity(
    tenant_id=DEFAULT_TENANT_ID, tenant="default", scopes=frozenset(SCOPES), caller=Caller(tenant_id=DEFAULT_TENANT_ID)
)
"""A caller on loopback without a key."""


class Gate:
    """Tells callers apart. Owned by the event loop; looks keys up in a thread and keeps the answers for a while."""

    def __init__(
        self,
        store: JobStore,
        *,
        keys_required: bool,
        limiter: Limiter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._limiter = limiter or Limiter()
        self._keys_required = keys_required
        self._clock = clock
        self._known: dict[tuple[bytes, bytes, bytes], tuple[float, Identity]] = {}

    def known(self, headers: Headers) -> Identity | None:
        """The caller where this is settled already; None asks for `identify`. RateLimited."""
        entry = self._known.get(_evidence(headers))
        if entry is None or entry[0] <= self._clock():
            return None
        self._limiter.take_request(entry[1].tenant_id)
        return entry[1]

    async def identify(self, headers: Headers, *, scope: str | None = None) -> Identity:
        """The caller, whose call counts from here on; RateLimited, Unauthorized, Forbidden where the place or the scope
        is wrong, Unavailable without a database."""
        evidence = _evidence(headers)
        entry = self._known.get(evidence)
        if entry is None or entry[0] <= self._clock():
            seconds, identity = await self._settle(*evidence)
            entry = (self._clock() + seconds, identity)
            if len(self._known) >= CACHE_ENTRIES:
                self._known.clear()
            self._known[evidence] = entry
        self._limiter.take_request(entry[1].tenant_id)
        if scope is not None:
            entry[1].require(scope)
        return entry[1]

    async def _settle(self, authorization: bytes, host: bytes, origin: bytes) -> tuple[float, Identity]:
        """The caller, and for how many seconds that holds."""
        if authorization:
            return await asyncio.to_thread(self._look_up, authorization)
        if self._keys_required:
            raise Unauthorized(
                "an API key is needed: send `Authorization: Bearer by_…`; `batchyard keys create` makes one"
            )
        _check_place(host.decode("latin-1"), origin.decode("latin-1"))
        return CACHE_SECONDS, LOCAL

    def _look_up(self, authorization: bytes) -> tuple[float, Identity]:
        scheme, _, text = authorization.decode("latin-1").partition(" ")
        prefix = prefix_of(text.strip()) if scheme.lower() == "bearer" else None
        if prefix is None:
            raise Unauthorized("the Authorization header must be `Bearer` and an API key: by_PREFIX_SECRET")
        found = self._store.find_key(prefix)
        if found is None or not is_same(digest_of(text.strip()), found[1]):
            raise Unauthorized("this API key is not known")
        key = found[0]
        now_ms = self._store.now_ms()
        fault = key.fault(now_ms=now_ms)
        if fault is not None:
            raise Unauthorized(f"this API key {fault}")
        left = CACHE_SECONDS if key.expires_at_ms is None else (key.expires_at_ms - now_ms) / 1000
        return min(CACHE_SECONDS, left), Identity(
            tenant_id=key.tenant_id,
            tenant=key.tenant,
            scopes=frozenset(key.scopes),
            caller=Caller(tenant_id=key.tenant_id, created_by=key.prefix),
            key_prefix=key.prefix,
        )


def is_loopback(host: str) -> bool:
    """Whether an address to bind, or a host that a caller named, is this machine's own."""
    bare = host.strip("[]").lower()
    if bare == "localhost" or bare.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False


def split_bind(bind: str) -> tuple[str, int]:
    """`HOST:PORT` apart, brackets of IPv6 removed; ConfigurationError."""
    host, _, port = bind.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigurationError([f'server.bind is "{bind}"; it must be HOST:PORT, as in "127.0.0.1:8080"'])
    return host.strip("[]"), int(port)


def keys_required(server: ServerSettings) -> bool:
    return server.require_keys or not is_loopback(split_bind(server.bind)[0])


def refuse_open_door(server: ServerSettings, keys: Sequence[ApiKey], *, now_ms: int) -> None:
    """ConfigurationError where keys are required and there is none: the service would be of no use, or open to all."""
    if keys_required(server) and all(key.fault(now_ms=now_ms) for key in keys):
        why = "require_keys is set" if server.require_keys else f"server.bind is {server.bind}, which is not loopback"
        raise ConfigurationError([f"{why}, but there is no valid API key: make one with `batchyard keys create`"])


def _evidence(headers: Headers) -> tuple[bytes, bytes, bytes]:
    authorization = host = origin = b""
    for name, value in headers:
        if name == b"host":
            host = value
        elif name == b"authorization":
            authorization = value
        elif name == b"origin":
            origin = value
    return authorization, host, origin


def _check_place(host: str, origin: str) -> None:
    named = _HOST.match(host)
    if named is None or not is_loopback(named["host"]):
        raise Forbidden(
            f"without an API key the Host must be this machine's own, such as localhost, not {host[:100]!r}"
        )
    if origin:
        scheme, _, rest = origin.partition("://")
        asked = _HOST.match(rest)
        if scheme not in {"http", "https"} or asked is None or not is_loopback(asked["host"]):
            raise Forbidden(f"without an API key no web page of elsewhere may call; the Origin was {origin[:100]!r}")
