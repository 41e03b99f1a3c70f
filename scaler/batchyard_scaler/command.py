"""`batchyard scaler`: sizes pools until it is told to end."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import click

from batchyard.cli.invocation import Invocation
from batchyard.logs import configure_logging
from batchyard_scaler.cluster import ClusterScaler
from batchyard_scaler.local import LocalScaler


@click.command()
@click.option("--local", is_flag=True, help="Start and drain the consumers too, as processes of this machine.")
@click.pass_obj
def scaler(invocation: Invocation, /, *, local: bool) -> None:
    """Decide by backlog how many consumers each pool should have, between its min and max.

    The API tells the decisions to KEDA. With --local they are carried out here, and SIGTERM drains all consumers;
    without, SIGTERM ends the scaler alone.
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
        running.run()
    finally:
        store.close()
