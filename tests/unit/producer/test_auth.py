"""Keys are checked against their digest, and without keys only this machine's own callers are let in."""

from typing import Any

import pytest

from batchyard import keys
from batchyard.errors import ConfigurationError, Forbidden, Unauthorized
from batchyard.settings import ServerSettings
from batchyard.store.base import ApiKey
from batchyard_producer.auth import CACHE_SECONDS, Gate, is_loopback, keys_required, refuse_open_door, split_bind

NOW_MS = 1_000_000


def api_key(prefix: str, *scopes: str, expires_at_ms: int | None = None, revoked_at_ms: int | None = None) -> ApiKey:
    return ApiKey(
        prefix=prefix,
        tenant="acme",
        tenant_id=7,
        name="test",
        scopes=scopes,
        created_at_ms=0,
        expires_at_ms=expires_at_ms,
        revoked_at_ms=revoked_at_ms,
    )


class Store:
    """Holds keys and counts look-ups."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[ApiKey, bytes]] = {}
        self.lookups = 0

    def add(self, *scopes: str, **times: int) -> str:
        made = keys.mint()
        self.rows[made.prefix] = (api_key(made.prefix, *scopes, **times), made.digest)
        return made.text

    def now_ms(self) -> int:
        return NOW_MS

    def find_key(self, prefix: str) -> tuple[ApiKey, bytes] | None:
        self.lookups += 1
        return self.rows.get(prefix)


def gate(store: Any, *, keys_required: bool = False, clock: Any = lambda: 0.0) -> Gate:
    return Gate(store, keys_required=keys_required, clock=clock)


def headers(**given: str) -> list[tuple[bytes, bytes]]:
    return [(b"accept", b"*/*"), *((name.encode(), value.encode()) for name, value in given.items())]


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return headers(host="example.org", authorization=f"Bearer {key}")


async def test_a_key_names_its_tenant_and_scopes() -> None:
    store = Store()
    key = store.add("jobs", "metrics")
    identity = await gate(store, keys_required=True).identify(bearer(key), scope="jobs")
    assert (identity.tenant_id, identity.tenant, identity.key_prefix) == (7, "acme", keys.prefix_of(key))
    assert identity.caller.created_by == identity.key_prefix
    with pytest.raises(Forbidden):
        identity.require("admin")


async def test_admin_allows_everything() -> None:
    store = Store()
    identity = await gate(store).identify(bearer(store.add("admin")))
    for scope in keys.SCOPES:
        identity.require(scope)


async def test_a_wrong_secret_under_a_known_prefix_is_refused() -> None:
    store = Store()
    key = store.add("jobs")
    wrong = key[:-1] + ("a" if key[-1] != "a" else "b")
    with pytest.raises(Unauthorized):
        await gate(store).identify(bearer(wrong))


@pytest.mark.parametrize("times", [{"expires_at_ms": NOW_MS}, {"revoked_at_ms": 1}])
async def test_an_old_key_is_refused(times: dict[str, int]) -> None:
    store = Store()
    with pytest.raises(Unauthorized):
        await gate(store).identify(bearer(store.add("jobs", **times)))


@pytest.mark.parametrize("authorization", ["Basic abc", "Bearer", "Bearer ", "Bearer nonsense", "\xff"])
async def test_other_credentials_are_refused_without_a_look_up(authorization: str) -> None:
    store = Store()
    with pytest.raises(Unauthorized):
        await gate(store).identify([(b"host", b"localhost"), (b"authorization", authorization.encode("latin-1"))])
    assert store.lookups == 0


async def test_an_answer_is_kept_no_longer_than_the_key_is_valid() -> None:
    store = Store()
    now = 0.0
    door = gate(store, clock=lambda: now)
    key = store.add("jobs", expires_at_ms=NOW_MS + 1500)
    await door.identify(bearer(key))
    now = 1.4
    assert door.known(bearer(key)) is not None
    now = 1.5
    assert door.known(bearer(key)) is None


async def test_an_answer_is_kept_for_a_while() -> None:
    store = Store()
    now = 0.0
    door = gate(store, clock=lambda: now)
    key = store.add("jobs")
    assert door.known(bearer(key)) is None
    for _ in range(3):
        await door.identify(bearer(key))
    assert door.known(bearer(key)) is not None
    assert store.lookups == 1
    now = CACHE_SECONDS
    assert door.known(bearer(key)) is None
    await door.identify(bearer(key))
    assert store.lookups == 2


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8080", "127.0.0.1:8080", "127.9.9.9", "[::1]:80", "x.localhost"]
)
@pytest.mark.parametrize("origin", ["", "http://localhost:3000", "https://127.0.0.1"])
async def test_this_machine_needs_no_key(host: str, origin: str) -> None:
    given = headers(host=host, **({"origin": origin} if origin else {}))
    identity = await gate(Store()).identify(given)
    assert (identity.tenant_id, identity.tenant) == (1, "default")


@pytest.mark.parametrize(
    "host", ["", "example.org", "localhost.example.org", "10.0.0.1:80", "localhost@evil.org", "[::2]"]
)
async def test_another_host_is_refused(host: str) -> None:
    with pytest.raises(Forbidden):
        await gate(Store()).identify(headers(host=host))


@pytest.mark.parametrize(
    "origin", ["null", "https://example.org", "http://localhost.example.org", "file://", "http://localhost@x"]
)
async def test_a_page_of_elsewhere_is_refused(origin: str) -> None:
    with pytest.raises(Forbidden):
        await gate(Store()).identify(headers(host="localhost", origin=origin))


async def test_where_keys_are_required_loopback_is_no_exception() -> None:
    with pytest.raises(Unauthorized):
        await gate(Store(), keys_required=True).identify(headers(host="localhost"))


def test_what_is_loopback() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "::1", "[::1]", "localhost", "LOCALHOST"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.1.2.3", "example.org", ""]))


def test_an_address_is_split() -> None:
    assert split_bind("127.0.0.1:8080") == ("127.0.0.1", 8080)
    assert split_bind("[::1]:0") == ("::1", 0)
    for wrong in ("", "8080", "localhost", ":80", "localhost:x", "localhost:70000"):
        with pytest.raises(ConfigurationError):
            split_bind(wrong)


def test_beyond_loopback_a_valid_key_must_exist() -> None:
    open_server = ServerSettings(bind="0.0.0.0:8080")
    assert keys_required(open_server)
    assert not keys_required(ServerSettings())
    refuse_open_door(ServerSettings(), [], now_ms=NOW_MS)
    refuse_open_door(open_server, [api_key("a", "jobs")], now_ms=NOW_MS)
    for useless in ([], [api_key("a", "jobs", revoked_at_ms=1), api_key("b", "jobs", expires_at_ms=1)]):
        with pytest.raises(ConfigurationError, match="batchyard keys create"):
            refuse_open_door(open_server, useless, now_ms=NOW_MS)
        with pytest.raises(ConfigurationError, match="require_keys"):
            refuse_open_door(ServerSettings(require_keys=True), useless, now_ms=NOW_MS)
