"""`batchyard scaler`: sizes pools until it is told to end."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import click

from batchyard.cli.extras import needs
from batchyard.cli.invocation import Invocation
from batchyard.logs import configure_logging
from batchyard.settings import Settings
from batchyard.store.base import JobStore
from batchyard_scaler.cluster import ClusterScaler
from batchyard_scaler.local import LocalScaler


@click.command()
@click.option("--local", is_flag=True, help="Start and drain the consumers too, as processes of this machine.")
@click.option("--grpc-bind", metavar="HOST:PORT", help="Tell KEDA's trigger external-push the decisions here.")
@click.pass_obj
def scaler(invocation: Invocation, /, *, local: bool, grpc_bind: str | None) -> None:
    """Decide by backlog how many consumers each pool should have, between its min and max.

    The API tells the decisions to KEDA, and so does --grpc-bind, in the clear and to whoever asks. With --local they
    are carried out here, and SIGTERM drains all consumers; without, SIGTERM ends the scaler alone.
    """
    settings = invocation.settings()
    configure_logging(settings.log_level)
    store = invocation.store()

    def command(pool: str) -> Sequence[str]:
        return invocation.child_command("worker", "--pool", pool)

    running = LocalScaler(settings, store=store, command=command) if local else ClusterScaler(settings, store=store)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: running.stop())
    try:
        with _telling(settings, store, bind=grpc_bind) if grpc_bind else nullcontext():
            running.run()
    finally:
        store.close()


def _telling(settings: Settings, store: JobStore, *, bind: str) -> AbstractContextManager[int]:
    with needs(feature="--grpc-bind", extra="scaler"):
        from batchyard_scaler.external.server import serving
    return serving(store, pools=[pool.name for pool in settings.pools], bind=bind)
