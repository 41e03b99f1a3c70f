"""Fixtures with real servers, one of each per run, and the rule about skips."""

import os
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar

# Before anything imports torch or Hugging Face's libraries: tests use what is installed and fetch nothing.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import pytest

from tests.servers import (
    PostgresServer,
    Server,
    ServerUnavailable,
    postgres_server,
    rabbitmq_server,
    redis_server,
    valkey_server,
)
from tests.skips import in_ci, refuse_skip

# In the background of a shell a process ignores Ctrl-C, and with it every process that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Deadlines measure a busy machine, not the code.
hypothesis.settings.register_profile("batchyard", deadline=None, print_blob=True)
hypothesis.settings.load_profile("batchyard")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a test that skips fails, unless the allow-list names it."""
    report = yield
    if in_ci():
        refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """In CI a module that skips itself fails, unless the allow-list names it."""
    report = yield
    if in_ci():
        refuse_skip(report)
    return report


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, the only loop the project runs on."""
    return "asyncio"


ServerT = TypeVar("ServerT", bound=Server)


@contextmanager
def _or_skip(starting: AbstractContextManager[ServerT]) -> Iterator[ServerT]:
    """Enter a server; skip with the reason where it is not installed."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(starting)
        except ServerUnavailable as missing:
            pytest.skip(str(missing))
        yield server


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """A Valkey shared by the run, on a Unix socket; a test that needs it empty takes `fresh_valkey`."""
    with _or_skip(valkey_server()) as server:
        yield server.url


@pytest.fixture
def fresh_valkey() -> Iterator[Server]:
    """A Valkey of the test's own, empty, which it may also kill."""
    with _or_skip(valkey_server()) as server:
        yield server


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Redis shared by the run, on a loopback port."""
    with _or_skip(redis_server()) as server:
        yield server.url


@pytest.fixture(scope="session")
def rabbitmq_url() -> Iterator[str]:
    """A RabbitMQ shared by the run, on a loopback port."""
    with _or_skip(rabbitmq_server()) as server:
        yield server.url


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[PostgresServer]:
    """A PostgreSQL shared by the run."""
    with _or_skip(postgres_server()) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url(postgres_cluster: PostgresServer) -> str:
    """The `postgres` database of the shared cluster; a test that creates tables takes `postgres_database`."""
    return postgres_cluster.url


@pytest.fixture
def postgres_database(postgres_cluster: PostgresServer) -> Iterator[Callable[[], str]]:
    """Makes empty databases, by URL; they are dropped after the test, connected or not."""
    made: list[str] = []

    def create() -> str:
        made.append(postgres_cluster.create_database())
        return made[-1]

    yield create
    for url in made:
        postgres_cluster.drop_database(url)
