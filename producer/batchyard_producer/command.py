"""`batchyard api`: one API process until it is told to end."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import click
import uvicorn

from batchyard.broker import Broker
from batchyard.broker.embedded import resolve_broker_url
from batchyard.cli.invocation import Invocation
from batchyard.errors import Unavailable
from batchyard.interpreter import answer_promptly
from batchyard.logs import configure_logging, log_event
from batchyard.settings import Settings
from batchyard.store.base import JobStore
from batchyard.store.open import open_store
from batchyard_producer.app import Api
from batchyard_producer.auth import keys_required, refuse_open_door, split_bind
from batchyard_producer.connections import Connection

LINGER_SECONDS = 5
"""How long requests under way may take once the process was told to end; idle connections are closed at once."""

BACKLOG = 4096
"""Connections that may wait to be accepted."""

log = logging.getLogger(__name__)


@click.command()
@click.option("--bind", metavar="HOST:PORT", help="Where to listen; default: server.bind of the configuration.")
@click.pass_obj
def api(invocation: Invocation, bind: str | None) -> None:
    """Serve the HTTP API, and host the dispatcher.

    Several such processes may share one database and one broker. SIGTERM stops it: requests under way are answered.
    """
    settings = invocation.settings(**{"server.bind": bind})
    configure_logging(settings.log_level)
    # We say ourselves when the process begins, is ready and ends.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    store = open_store(settings.database.url, state_dir=settings.state_dir)
    try:
        serve(settings, store=store)
    finally:
        store.close()


def serve(settings: Settings, *, store: JobStore) -> None:
    """Serve until SIGTERM or SIGINT; ConfigurationError where nobody could come in, Unavailable without a database."""
    if keys_required(settings.server):
        refuse_open_door(settings.server, store.keys(), now_ms=store.now_ms())
    broker = Broker(resolve_broker_url(settings))
    try:
        listening = _listen(settings.server.bind)
        process = Api(settings, store=store, broker=broker)
        server = _Server(_config(process), on_exit=process.drain)
        answer_promptly()
        log_event(log, "api_starting", bind=settings.server.bind, database=store.durability())
        server.run(sockets=[listening])
        if not server.started:
            raise Unavailable("the API did not start; the log above says why")
    finally:
        broker.close()
    log_event(log, "api_ended")


def _listen(bind: str) -> socket.socket:
    """Take the address before anything is started; Unavailable where somebody else has it."""
    host, port = split_bind(bind)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise Unavailable(f"cannot listen on {bind}: {(error.strerror or str(error)).lower()}") from error


def _config(process: Api) -> uvicorn.Config:
    return uvicorn.Config(
        process.application,
        loop="uvloop",
        http=Connection,
        ws="none",
        interface="asgi3",
        proxy_headers=False,  # nothing here asks where a request came from, and it would cost every one of them
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=LINGER_SECONDS,
        timeout_keep_alive=75,
        backlog=BACKLOG,
    )


class _Server(uvicorn.Server):
    """Lets long polls go when the signal comes: otherwise they would hold the process for as long as they wait."""

    def __init__(self, config: uvicorn.Config, *, on_exit: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_exit = on_exit

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            log_event(log, "api_ready")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        log_event(log, "api_ending", signal=signal.Signals(sig).name)
        self._on_exit()
        # Not the parent's: it would raise the signal again afterwards, and the process end by it instead of in order.
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
