"""The private servers start, answer, keep to themselves and leave nothing behind."""

from collections.abc import Callable
from pathlib import Path

import kombu
import psutil
import psycopg
import pytest
import redis
import sqlalchemy

from tests.servers import Server, ServerFailed, postgres_server, rabbitmq_server, valkey_server


def test_valkey_answers_on_its_socket(valkey_url: str) -> None:
    path = valkey_url.removeprefix("redis+socket://")
    with redis.Redis(unix_socket_path=path) as client:
        client.set("a", b"1")
        assert client.get("a") == b"1"


def test_a_fresh_valkey_is_empty_and_is_another(fresh_valkey: Server, valkey_url: str) -> None:
    assert fresh_valkey.url != valkey_url
    with redis.Redis(unix_socket_path=fresh_valkey.url.removeprefix("redis+socket://")) as client:
        assert client.dbsize() == 0


def test_redis_answers_on_loopback(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set("a", b"1")
        assert client.get("a") == b"1"


@pytest.mark.parametrize("broker", ["valkey_url", "redis_url", "rabbitmq_url"])
def test_kombu_passes_a_message_through(broker: str, request: pytest.FixtureRequest) -> None:
    url: str = request.getfixturevalue(broker)
    with kombu.Connection(url) as connection, connection.SimpleQueue("test_servers") as queue:
        queue.put({"ids": [1, 2]})
        message = queue.get(timeout=10)
        message.ack()
        assert message.payload == {"ids": [1, 2]}


def test_rabbitmq_ends_with_its_epmd(rabbitmq_url: str) -> None:
    before = _children()
    with rabbitmq_server() as server:
        assert server.url != rabbitmq_url
        assert len(_children()) > len(before) + 1
    assert not server.directory.exists()
    assert _children() == before


def test_postgres_databases_are_empty_distinct_and_dropped(
    postgres_url: str, postgres_database: Callable[[], str]
) -> None:
    first, second = postgres_database(), postgres_database()
    assert len({postgres_url, first, second}) == 3
    engine = sqlalchemy.create_engine(first, poolclass=sqlalchemy.NullPool)
    with engine.begin() as session:
        session.execute(sqlalchemy.text("CREATE TABLE only_here (a int)"))
    engine = sqlalchemy.create_engine(second, poolclass=sqlalchemy.NullPool)
    with engine.begin() as session:
        assert sqlalchemy.inspect(session).get_table_names() == []


def test_postgres_is_durable_as_it_comes(postgres_url: str) -> None:
    engine = sqlalchemy.create_engine(postgres_url, poolclass=sqlalchemy.NullPool)
    with engine.begin() as session:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert session.execute(sqlalchemy.text(f"SHOW {setting}")).scalar() == "on"


def test_postgres_of_the_wheel_takes_settings_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.servers.postgres.INSTALLED", Path("/nowhere"))
    with postgres_server({"synchronous_commit": "off"}) as server:
        assert server.version.startswith("18")
        with psycopg.connect(host=str(server.directory), user="postgres", dbname="postgres") as session:
            assert session.execute("SHOW synchronous_commit").fetchone() == ("off",)
    assert not server.directory.exists()
    assert not psutil.pid_exists(server.pid)


def test_a_server_that_cannot_start_says_why_with_its_log() -> None:
    failing = valkey_server("--no-such-option", "yes")
    with pytest.raises(ServerFailed, match=r"(?s)ended with status.*no-such-option"):
        failing.__enter__()


def _children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}
