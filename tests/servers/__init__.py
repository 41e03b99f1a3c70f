"""Private servers for tests, benchmarks and demonstrations, each a context manager.

A server lives in its own folder under the temporary directory, listens on a socket there or on a free loopback port,
and is gone, folder and all, when its `with` block ends. `ServerUnavailable` is raised where it is not installed.
"""

from tests.servers.postgres import PostgresServer, postgres_server
from tests.servers.processes import Server, ServerFailed, ServerUnavailable
from tests.servers.rabbitmq import rabbitmq_server
from tests.servers.redis_protocol import redis_server, valkey_server

__all__ = [
    "PostgresServer",
    "Server",
    "ServerFailed",
    "ServerUnavailable",
    "postgres_server",
    "rabbitmq_server",
    "redis_server",
    "valkey_server",
]
