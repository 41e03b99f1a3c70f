"""Bad input and bad weather, as each client of the SDK meets them: one typed error for each, told what to do.

An API process on a Postgres that can be sent away, without consumers: what is submitted stays queued.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psycopg
import pytest

from batchyard import (
    AsyncClient,
    BatchyardError,
    Client,
    ConfigurationError,
    Forbidden,
    Gone,
    IdempotencyConflict,
    InvalidInput,
    InvalidRequest,
    NotFound,
    QueueFull,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnknownModel,
)
from batchyard.jobs import Accepted, Submission, format_id
from batchyard.keys import mint
from batchyard.sdk.steps import Request, Response
from batchyard.store import migrate
from batchyard.store.base import JobStore, ModelConfig
from batchyard.store.open import open_store
from tests.servers import PostgresServer
from tests.services.api.process import started
from tests.services.up import eventually

MAX_QUEUED = 50
SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
CONFIG = f"""
[database]
url = "URL"
[server]
max_input_bytes = 1000
[queues]
max_queued = {MAX_QUEUED}
[retention]
keep_seconds = 1
[models.echo]
runtime = "tests:Echo"
[models.full]
runtime = "tests:Echo"
[models.strict]
runtime = "tests:Strict"
[pools.local]
models = ["echo", "full", "strict"]
"""

KindT = TypeVar("KindT", bound=BatchyardError)


@dataclass(frozen=True, kw_only=True)
class Place:
    """The API, and what was there before it."""

    url: str
    folder: Path
    database: str
    administrator: str
    """The server's own database, from which ours can be closed."""
    foreign: str
    """A job of another tenant."""
    foreign_key: str
    """A key of theirs, for jobs alone."""
    old: str
    """A job that ended before the API was started, long enough ago for its retention."""

    @contextmanager
    def away(self) -> Iterator[None]:
        """The database takes nobody in, and those who were in are thrown out."""
        name = self.database.partition("?")[0].rpartition("/")[2]
        self._administer(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        try:
            self._administer(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'")
            yield
        finally:
            self._administer(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            with httpx.Client(base_url=self.url) as client:
                assert eventually(lambda: client.get("/readyz").is_success)

    def _administer(self, statement: str) -> None:
        with psycopg.connect(self.administrator.replace("+psycopg", ""), autocommit=True) as session:
            session.execute(statement.encode())


@pytest.fixture(scope="module")
def place(postgres_cluster: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    database = postgres_cluster.create_database()
    migrate.upgrade(database)
    folder = tmp_path_factory.mktemp("place")
    (folder / "batchyard.toml").write_text(CONFIG.replace("URL", database))
    store = open_store(database, state_dir=folder)
    before = _prepare(store)
    with started(folder) as (_, client):
        yield Place(
            url=str(client.base_url).rstrip("/"),
            folder=folder,
            database=database,
            administrator=postgres_cluster.url,
            **before,
        )
    store.close()
    postgres_cluster.drop_database(database)


def _prepare(store: JobStore) -> dict[str, str]:
    """Another tenant's job, a job that is over, and the schema of "strict", which a consumer would publish."""
    names = ("echo", "full", "strict")
    versions = {
        version.model: version
        for version in store.sync_models(
            [
                ModelConfig(model=name, version="1", runtime=f"tests:{'Strict' if name == 'strict' else 'Echo'}")
                for name in names
            ]
        )
    }
    store.report_version(versions["strict"].id, digest="d", input_schema=SCHEMA, cost_unit="bytes", load_seconds=0.1)
    queue_id = next(iter(versions["echo"].queue_ids.values()))
    theirs = store.create_tenant("acme").id
    made = mint()
    store.create_key(
        prefix=made.prefix, tenant_id=theirs, name="", digest=made.digest, scopes=["jobs"], expires_at_ms=None
    )
    foreign, old = (
        accepted.ids[0]
        for accepted in store.submit(
            [Submission(tenant_id=tenant, queue_id=queue_id, inputs=[b"1"], costs=[1]) for tenant in (theirs, 1)]
        )
        if isinstance(accepted, Accepted)
    )
    ended_at = store.now_ms()
    store.cancel(old, tenant_id=1)
    assert eventually(lambda: store.now_ms() > ended_at + 1000)
    return {"foreign": format_id(foreign), "foreign_key": made.text, "old": format_id(old)}


class Asker:
    """Makes one call with a client of one kind."""

    def __init__(self, kind: str, place: Place) -> None:
        self.kind = kind
        self._place = place

    def ask(self, call: Callable[[Any], Any], **options: Any) -> Any:
        """`call` is given a client; what it returns is awaited where the client is an asynchronous one."""
        if self.kind == "AsyncClient":
            return asyncio.run(self._aask(call, options))
        with self._client(options) as client:
            return call(client)

    def refused(self, kind: type[KindT], call: Callable[[Any], Any], **options: Any) -> KindT:
        """The error that the call raises, which must be of exactly this kind."""
        with pytest.raises(kind) as caught:
            self.ask(call, **options)
        assert type(caught.value) is kind
        assert caught.value.code == kind.code
        return caught.value

    def _client(self, options: dict[str, Any]) -> Client:
        if self.kind == "Client.direct":
            return Client.direct(config=self._place.folder / "batchyard.toml")
        return Client(self._place.url, retry_seconds=0, **options)

    async def _aask(self, call: Callable[[Any], Any], options: dict[str, Any]) -> Any:
        async with AsyncClient(self._place.url, retry_seconds=0, **options) as client:
            return await call(client)


@pytest.fixture(params=["Client", "AsyncClient", "Client.direct"])
def asker(request: pytest.FixtureRequest, place: Place) -> Asker:
    return Asker(request.param, place)


@pytest.fixture(params=["Client", "AsyncClient"])
def http_asker(request: pytest.FixtureRequest, place: Place) -> Asker:
    return Asker(request.param, place)


def test_an_unknown_model(asker: Asker) -> None:
    error = asker.refused(UnknownModel, lambda client: client.submit("strct", 1))

    assert {"echo", "strict"} <= set(error.details["allowed"])
    assert error.details["nearest"] == "strict"
    assert 'did you mean "strict"' in error.message


def test_an_input_that_does_not_fit_the_model(asker: Asker) -> None:
    one = asker.refused(InvalidInput, lambda client: client.submit("strict", {"text": 5}))
    assert one.details["pointer"] == "/input/text"

    fit = {"text": "a"}
    several = asker.refused(InvalidInput, lambda client: client.submit_many("strict", [fit, {"text": 5}, fit]))
    assert (several.details["pointer"], several.details["index"]) == ("/inputs/1/text", 1)


@pytest.mark.parametrize("kind", ["Client", "Client.direct"])
def test_an_input_of_a_bulk_that_does_not_fit(place: Place, kind: str) -> None:
    """The index counts from the bulk's first input, not from the chunk's."""
    inputs = [{"text": "a"}, {"text": "b"}, {"text": "c"}, {"text": 5}]

    by_hand = Asker(kind, place).refused(
        InvalidInput, lambda client: client.bulk("strict").add(inputs[:2]).add(inputs[2:])
    )
    mapped = Asker(kind, place).refused(
        InvalidInput, lambda client: next(client.map("strict", iter(inputs[2:]), chunk_size=1))
    )

    assert by_hand.details["index"] == 3
    assert mapped.details["index"] == 1


async def test_an_input_of_a_bulk_that_does_not_fit_with_asyncio(place: Place) -> None:
    async with AsyncClient(place.url, retry_seconds=0) as client:
        bulk = await client.bulk("strict")
        await bulk.add([{"text": "a"}])
        with pytest.raises(InvalidInput) as by_hand:
            await bulk.add([{"text": 5}])
        async with client.map("strict", [{"text": "a"}, {"text": 5}], chunk_size=1) as results:
            with pytest.raises(InvalidInput) as mapped:
                await anext(results)

    assert (by_hand.value.details["index"], mapped.value.details["index"]) == (1, 1)


def test_too_large_an_input(asker: Asker) -> None:
    error = asker.refused(TooLarge, lambda client: client.submit("echo", "x" * 2000))

    assert error.details["limit"] == 1000
    assert asker.refused(TooLarge, lambda client: client.submit_many("echo", range(10_001))).details["limit"] == 10_000


def test_a_value_that_is_not_allowed(asker: Asker) -> None:
    assert "priority" in asker.refused(InvalidRequest, lambda client: client.submit("echo", 1, priority=11)).message


@pytest.mark.parametrize("job_id", ["0" * 16, "no id"])
def test_an_unknown_id(asker: Asker, job_id: str) -> None:
    asker.refused(NotFound, lambda client: client.get(job_id))
    asker.refused(NotFound, lambda client: client.lookup([job_id]))
    asker.refused(NotFound, lambda client: client.bulk(id=job_id))


def test_an_id_of_another_tenant(asker: Asker, place: Place) -> None:
    asker.refused(NotFound, lambda client: client.get(place.foreign))
    asker.refused(NotFound, lambda client: client.lookup([place.foreign]))
    if asker.kind != "Client.direct":
        assert asker.ask(lambda client: client.get(place.foreign), api_key=place.foreign_key).state == "queued"


def test_a_second_body_under_one_key(asker: Asker) -> None:
    key = f"key of {asker.kind}"
    asker.ask(lambda client: client.submit("echo", 1, idempotency_key=key))

    asker.refused(IdempotencyConflict, lambda client: client.submit("echo", 2, idempotency_key=key))


def test_a_full_queue(asker: Asker) -> None:
    def full() -> bool:
        """The API counts what it has let in; others hear of it within a second."""
        try:
            asker.ask(lambda client: client.submit_many("full", range(MAX_QUEUED)))
        except QueueFull:
            return True
        return False

    assert eventually(full)
    error = asker.refused(QueueFull, lambda client: client.submit_many("full", range(MAX_QUEUED)))

    assert (error.details["limit"], error.retryable) == (MAX_QUEUED, True)
    assert (error.retry_after_seconds or 0) >= 1


def test_an_id_that_is_no_longer_kept(asker: Asker, place: Place) -> None:
    assert eventually(lambda: httpx.get(f"{place.url}/v1/jobs/{place.old}").status_code == 410)

    assert place.old in asker.refused(Gone, lambda client: client.get(place.old)).message
    assert asker.refused(Gone, lambda client: client.lookup([place.old])).details["ids"] == [place.old]


def test_a_key_that_is_none_and_one_that_may_not(http_asker: Asker, place: Place) -> None:
    http_asker.refused(Unauthorized, lambda client: client.models(), api_key="by_nobody_nothing")
    http_asker.refused(Forbidden, lambda client: client.pause("echo"), api_key=place.foreign_key)


def test_a_database_that_is_away(http_asker: Asker, place: Place) -> None:
    job = http_asker.ask(lambda client: client.submit("echo", 1))

    with place.away():
        for call in (lambda client: client.submit("echo", 2), lambda client: client.get(job.id)):
            error = http_asker.refused(Unavailable, call)
            assert error.retryable
            assert (error.retry_after_seconds or 0) >= 1

    assert http_asker.ask(lambda client: client.get(job.id)).state == "queued"


def test_a_database_that_is_away_from_a_direct_client(place: Place) -> None:
    config = place.folder / "batchyard.toml"
    with Client.direct(config=config) as client, place.away():
        client._retry_seconds = 0
        with pytest.raises(Unavailable) as caught:
            client.submit("echo", 1)
        assert caught.value.retryable
        with pytest.raises(Unavailable):
            Client.direct(config=config)


def test_a_submission_outlasts_a_database_that_is_away(place: Place) -> None:
    """With the patience that a client has by default, or more."""
    with Client(place.url, retry_seconds=60) as client, ThreadPoolExecutor(1) as caller:
        send, statuses = client._transport.send, list[int]()

        def sending(request: Request) -> Response:
            response = send(request)
            statuses.append(response.status)
            return response

        client._transport.send = sending  # type: ignore[method-assign]
        with place.away():
            submitted = caller.submit(client.submit, "echo", 3)
            assert eventually(lambda: len(statuses) > 1)
        assert submitted.result(60).state == "queued"

    assert {503, 202} == set(statuses)


def test_a_bad_configuration(tmp_path: Path) -> None:
    config = tmp_path / "batchyard.toml"
    config.write_text('[server]\nbind = "x"\n[pools.p]\nmodels = ["m"]\nmin = 5\n')

    with pytest.raises(ConfigurationError) as caught:
        Client.direct(config=config)

    assert len(caught.value.faults) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["batchyard.toml"]
